"""Peak memory use."""

from __future__ import annotations

import resource
import sys

import torch

from adamas_cli.cache.mapped import mapped_bytes


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on a GPU; elsewhere, peak bytes of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + mapped_bytes(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
