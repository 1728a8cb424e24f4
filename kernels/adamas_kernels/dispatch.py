"""Which backend computes the sparse steps on a device, and why not a faster one."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from adamas_kernels.contract import Backend

if TYPE_CHECKING:
    from adamas_kernels.triton.dense import DenseStep

BACKENDS = ("triton", "cpu", "torch")
OLDEST_CAPABILITY = (8, 0)  # NVIDIA's Ampere; Triton's own minimum


class BackendError(Exception):
    """A backend was asked for by name and cannot run here; the message says why."""


def obstacle(name: str, device: torch.device) -> str | None:
    """Why this backend cannot run on this device, in a few words, or None where it can."""
    if name == "torch":
        return None
    if name == "cpu":
        if device.type != "cpu":
            return f"the model is on {device.type}"
        return None if find_spec("numba") else "numba is not installed"
    if name != "triton":
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, not {name!r}")
    if device.type != "cuda":
        return f"the model is on {device.type}, not on a GPU"
    if find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        found, wanted = (
            ".".join(map(str, c)) for c in (torch.cuda.get_device_capability(device), OLDEST_CAPABILITY)
        )
        return f"the GPU's compute capability is {found}, below {wanted}"
    return None


def pick(name: str, device: torch.device) -> tuple[str, str | None]:
    """The backend of that name, or for `auto` the fastest that runs on this device; imports none.

    Returns its name with the reason why it is not Triton, one line, None if it is or was chosen by name.
    Raises BackendError where a named backend cannot run, and ValueError for an unknown name.
    """
    if name != "auto":
        reason = obstacle(name, device)
        if reason:
            raise BackendError(f"the {name} backend cannot run: {reason}")
        return name, None
    reasons = {candidate: obstacle(candidate, device) for candidate in BACKENDS}
    chosen = next(candidate for candidate in BACKENDS if reasons[candidate] is None)
    if chosen == "triton":
        return chosen, None
    passed = "; ".join(f"no {other}: {why}" for other, why in reasons.items() if why)
    return chosen, f"the {chosen} backend computes sparse attention ({passed})"


def load(name: str, announce: Callable[[str], None] | None = None) -> Backend:
    """A backend that `pick` named. Only its own compiler is imported: each takes its time.

    announce: told, in one line, before something is compiled that takes seconds.
    """
    if name == "triton":
        from adamas_kernels.triton.backend import TritonBackend

        return TritonBackend()
    if name == "cpu":
        from adamas_kernels.cpu import CpuBackend

        return CpuBackend(announce)
    from adamas_kernels.torch.backend import TorchBackend

    return TorchBackend()


def load_dense(device: torch.device) -> DenseStep | None:
    """Full attention of one token at a length that lies on the device, or None where nothing computes it."""
    if obstacle("triton", device):
        return None
    from adamas_kernels.triton.dense import DenseStep

    return DenseStep()
