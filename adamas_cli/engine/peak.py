"""Memory in use, and memory left."""

from __future__ import annotations

import resource
import sys

import torch

from adamas_cli.cache.mapped import mapped_bytes
from adamas_cli.machine.memory import memory


def free_memory(device: torch.device) -> int:
    """Bytes that are left where a device keeps its tensors."""
    if device.type != "cuda":
        return memory().available
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on a GPU; elsewhere, peak bytes of this process."""
    if device.type == "cuda":
        # `max_memory_allocated` flattens all statistics for this one.
        allocated = torch.cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"]["peak"]
        return int(allocated) + mapped_bytes(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
