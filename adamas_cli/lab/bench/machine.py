"""The machine of a measurement: printed above the figures, and stored with each as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adamas_cli import __version__
from adamas_cli.engine.attention import backends_of
from adamas_cli.lab.bench.clock import copy_bandwidth_apart
from adamas_cli.lab.hardware import device_name

# LLVM's names of the features that decide the speed of attention and of 8-bit and 16-bit products.
FEATURES = (
    "avx2",
    "avxvnni",
    "avx512f",
    "avx512vnni",
    "avx512bf16",
    "amx-int8",
    "amx-bf16",
    "neon",
    "dotprod",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True)
class Machine:
    """A device and the software on it. copy: its copy bandwidth, in bytes per second."""

    device: str
    features: tuple[str, ...]
    threads: int
    backend: str
    dtype: str
    copy: float

    @classmethod
    def of(cls, device: torch.device, backend: str, dtype: torch.dtype, gpus: int = 1) -> Machine:
        """Measures the device, the first of this many. Raises UsageError if the backend cannot run on it."""
        name, _ = backends_of(device).pick(backend)
        return cls(
            device_name(device) if gpus == 1 else f"{gpus} x {device_name(device)}",
            _cpu_features() if device.type == "cpu" else (),
            torch.get_num_threads(),
            name,
            str(dtype).removeprefix("torch."),
            copy_bandwidth_apart(device),
        )

    @property
    def about(self) -> str:
        """A one-line description."""
        facts = [
            self.device,
            *([" ".join(self.features)] if self.features else []),
            f"torch {torch.__version__}",
            f"{self.backend} backend",
            self.dtype,
            f"copy {self.copy / 1e9:,.0f} GB/s",
        ]
        return "; ".join(facts)

    def as_json(self) -> dict[str, object]:
        """The same as data."""
        return {
            "device": self.device,
            "features": " ".join(self.features),
            "threads": self.threads,
            "torch": torch.__version__,
            "adamas": __version__,
            "dtype": self.dtype,
            "copy_bytes_per_s": self.copy,
        }


def _cpu_features() -> tuple[str, ...]:
    try:
        from adamas_kernels.cpu import features
    except ImportError:  # numba does not exist for every Python and platform
        return ()
    return tuple(feature for feature in FEATURES if feature in features.FEATURES)
