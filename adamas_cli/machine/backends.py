"""The backends of `adamas_kernels` that run on a kind of device, found without importing torch."""

from __future__ import annotations

from importlib.util import find_spec

OLDEST_CAPABILITY = (8, 0)  # the oldest NVIDIA GPUs that Triton supports: Ampere


def backend_obstacles(device: str, capability: tuple[int, int] | None) -> dict[str, str | None]:
    """Every backend, the fastest first, with why it cannot run on a kind of device, or None if it can. The
    same as `adamas_kernels.dispatch` finds with a torch device. capability: of the GPU, None if unknown.
    """
    triton = None
    if device != "cuda":
        triton = f"the model is on {device}, not on a GPU"
    elif find_spec("triton") is None:
        triton = "triton is not installed"
    elif capability is not None and capability < OLDEST_CAPABILITY:
        found, wanted = (".".join(map(str, version)) for version in (capability, OLDEST_CAPABILITY))
        triton = f"the GPU's compute capability is {found}, below {wanted}"
    cpu = None
    if device != "cpu":
        cpu = f"the model is on {device}"
    elif find_spec("numba") is None:
        cpu = "numba is not installed"
    return {"triton": triton, "cpu": cpu, "torch": None}
