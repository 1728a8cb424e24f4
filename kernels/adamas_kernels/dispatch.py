"""Chooses the backend for an operation, and says why a faster one cannot serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec

import torch

from adamas_kernels.contract import Backend, Facts

OLDEST_CAPABILITY = (8, 0)  # NVIDIA's Ampere; Triton's own minimum

Obstacle = Callable[[Facts], str | None]  # a short reason why a backend cannot serve


class BackendError(Exception):
    """No backend can run here: neither the one named, nor any for the operation. The message says why."""


@cache
def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _torch(facts: Facts) -> None:
    """Plain torch runs everywhere."""


def _cpu(facts: Facts) -> str | None:
    if facts.device.type != "cpu":
        return f"the model is on {facts.device.type}"
    return None if _installed("numba") else "numba is not installed"


def _cpu_prefill(facts: Facts) -> str | None:
    reason = _cpu(facts) or _one_token(facts)
    if reason:  # do not import numba for nothing
        return reason
    from adamas_kernels.cpu.prefill import obstacle

    return obstacle(facts)


def _cpu_linear(facts: Facts) -> str | None:
    return _cpu(facts) or (None if facts.packed else "the weights are not packed")


@cache
def _triton_on(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the model is on {device.type}, not on a GPU"
    if not _installed("triton"):
        return "triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        found, wanted = (
            ".".join(map(str, c)) for c in (torch.cuda.get_device_capability(device), OLDEST_CAPABILITY)
        )
        return f"the GPU's compute capability is {found}, below {wanted}"
    return None


def _triton(facts: Facts) -> str | None:
    return _triton_on(facts.device)


def _triton_prefill(facts: Facts) -> str | None:
    dtype = facts.dtype if facts.dtype == facts.kept else None
    wide = dtype is None or dtype.itemsize != 2
    return _triton(facts) or _one_token(facts) or (f"keys are {_name(dtype)}" if wide else None)


def _triton_linear(facts: Facts) -> str | None:
    return _triton(facts) or ("the weights are packed" if facts.packed else None)


def _one_token(facts: Facts) -> str | None:
    return "it is one token" if facts.new == 1 else None


def _name(dtype: torch.dtype | None) -> str:
    return "of another number format" if dtype is None else str(dtype).removeprefix("torch.")


# The candidates for each operation of the contract, fastest first.
CANDIDATES: Mapping[str, Mapping[str, Obstacle]] = {
    "encode_keys": {"triton": _triton, "cpu": _cpu, "torch": _torch},
    "read_rows": {"triton": _triton, "cpu": _cpu, "torch": _torch},
    "prefill": {"triton": _triton_prefill, "cpu": _cpu_prefill, "torch": _torch},
    "summarize": {"triton": _triton, "cpu": _cpu, "torch": _torch},
    "prefill_sparsely": {"triton": _triton_prefill, "cpu": _cpu_prefill, "torch": _torch},
    "dense_step": {"triton": _triton, "cpu": _cpu, "torch": _torch},
    "decode_step": {"triton": _triton, "cpu": _cpu, "torch": _torch},
    "linear": {"triton": _triton_linear, "cpu": _cpu_linear, "torch": _torch},
    "decoder": {"cpu": _cpu},
}
BACKENDS = tuple(CANDIDATES["decode_step"])


def obstacles(operation: str, facts: Facts) -> dict[str, str | None]:
    """For each candidate, fastest first: why it cannot serve the operation, or None if it can."""
    return {name: why_not(facts) for name, why_not in CANDIDATES[operation].items()}


def serving(operation: str, facts: Facts) -> Backend:
    """The first candidate without an obstacle, shared by all callers in this process.

    Raises BackendError with all obstacles if there is none.
    """
    for name, why_not in CANDIDATES[operation].items():
        if why_not(facts) is None:
            return _shared(name, torch.get_num_threads())
    raise BackendError(f"no backend serves {operation} ({_passed(obstacles(operation, facts))})")


@cache
def _shared(name: str, threads: int) -> Backend:
    """One backend per thread count; a backend keeps the count it was made with."""
    return load(name)


def _passed(reasons: Mapping[str, str | None]) -> str:
    return "; ".join(f"no {name}: {why}" for name, why in reasons.items() if why)


def obstacle(name: str, device: torch.device) -> str | None:
    """A short reason why this backend cannot compute sparse steps on this device, or None if it can."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)}, not {name!r}")
    return CANDIDATES["decode_step"][name](Facts(device))


def pick(name: str, device: torch.device) -> tuple[str, str | None]:
    """The named backend, or for `auto` the fastest that computes sparse steps on this device. Imports none.

    Returns the name and a one-line reason why it is not Triton (None for Triton or a backend given by name).
    Raises BackendError if a named backend cannot run, and ValueError for an unknown name.
    """
    if name != "auto":
        reason = obstacle(name, device)
        if reason:
            raise BackendError(f"the {name} backend cannot run: {reason}")
        return name, None
    reasons = obstacles("decode_step", Facts(device))
    chosen = next(candidate for candidate, why in reasons.items() if why is None)
    if chosen == "triton":
        return chosen, None
    return chosen, f"the {chosen} backend computes sparse attention ({_passed(reasons)})"


def load(name: str, announce: Callable[[str], None] | None = None) -> Backend:
    """Load the backend that `pick` named. Imports only its own compiler, since each import is slow.

    announce: called with one line before a compilation that takes seconds.
    """
    if name == "triton":
        from adamas_kernels.triton.backend import TritonBackend

        return TritonBackend()
    if name == "cpu":
        from adamas_kernels.cpu import CpuBackend

        return CpuBackend(announce)
    from adamas_kernels.torch.backend import TorchBackend

    return TorchBackend()
