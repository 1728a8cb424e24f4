"""Whether a timeline's keys and values are in host memory beside a GPU, decided as in the plan, but by what
is free now that the weights are loaded.
"""

from __future__ import annotations

import os

import torch

from adamas_cli.cache.hosted import sees_host_memory
from adamas_cli.cache.mapped import mapped_bytes, maps_memory
from adamas_cli.cache.placement import Hosted
from adamas_cli.cache.staging import Staging
from adamas_cli.engine.model import Model
from adamas_cli.errors import UsageError
from adamas_cli.machine.memory import memory
from adamas_cli.models.shape import COPIED_STEPS, MOST_COPIED_STEPS, NO_WEIGHTS
from adamas_cli.planning.decision import Attention, place
from adamas_cli.planning.needs import Bytes, gpu_bytes
from adamas_cli.settings import DecodingSettings

ROOMY = 7 / 8  # of the free memory, that copies of more than the fewest steps may fill with the rest
ALLOCATOR_OPTIONS = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"  # environment variables of torch


def host_placement(model: Model, asked: DecodingSettings, decided: Attention, tokens: int) -> Hosted | None:
    """The placement in host memory for a context of this many tokens; None for the device's own memory.

    Raises UsageError if host memory is requested and cannot be used.
    """
    device = model.device
    if device.type != "cuda":
        return None
    if not sees_host_memory(device):
        if asked.kv == "host":
            raise UsageError("`kv` host needs an NVIDIA GPU and Linux. Use `kv` gpu.")
        return None

    def needs(hosted_from: int | None, copied: int = COPIED_STEPS) -> Bytes:
        return gpu_bytes(
            model.shape,
            NO_WEIGHTS,
            tokens=tokens,
            item=model.module.dtype.itemsize,
            coded_from=decided.dense_layers if decided.sparse else None,
            reads_sparsely=decided.read == "sparse",
            chunk=decided.chunk,
            bits=None,
            blocks=None,
            hosted_from=hosted_from,
            kept=asked.cache_dtype,
            budget=decided.budget,
            copied=copied,
        )

    free = free_memory(device)
    found = place(asked, needs, free, memory().available, model.unserved)
    hosted = found.host > 0
    if model.ranks is not None:
        hosted = any(model.ranks.each(hosted))
    if not hosted:
        return None
    leave_no_gaps(device)
    more = range(MOST_COPIED_STEPS, COPIED_STEPS, -1)
    fitting = (steps for steps in more if needs(decided.dense_layers, steps).total <= ROOMY * free)
    return Hosted(Staging(device), next(fitting, COPIED_STEPS))


def leave_no_gaps(device: torch.device) -> None:
    """Have torch map memory in pages from now on, unless the user has chosen otherwise. In blocks of fixed
    size, a twelfth of a card of 12 GB was lost to gaps after 128K tokens were read (docs/performance.md).
    """
    if maps_memory(device) and not any(os.environ.get(name) for name in ALLOCATOR_OPTIONS):
        names = (
            (torch._C, "_accelerator_setAllocatorSettings"),
            (torch.cuda.memory, "_set_allocator_settings"),
        )
        known = (getattr(place, name, None) for place, name in names)  # the first one since torch 2.10
        if (change := next(filter(None, known), None)) is not None:
            change("expandable_segments:True")


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process may still use: those that no one uses or torch holds unused, within
    the share that torch may take.
    """
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    share = torch.cuda.get_per_process_memory_fraction(device) * total
    unused = torch.cuda.memory_reserved(device) - allocated
    return min(free + unused, int(share) - allocated - mapped_bytes(device))
