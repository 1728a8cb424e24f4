"""Memory of each GPU that the others of a group write to, for sums of few numbers (`triton/sums.py`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from adamas_kernels.dispatch import obstacle

if TYPE_CHECKING:
    from adamas_kernels.triton.sums import Sums

log = logging.getLogger(__name__)

CAPACITY = 1 << 17  # numbers of the largest such sum: 16 tokens of 8,192


def open_inboxes(rank: int, count: int, device: torch.device) -> Sums | None:
    """This rank's end of such sums; None if GPUs cannot write to each other's memory. All ranks of torch's
    process group must call this at once.
    """
    if device.type != "cuda":
        return None
    others = [other for other in range(count) if other != rank]  # devices have their ranks' numbers
    reach = not obstacle("triton", device) and all(
        torch.cuda.can_device_access_peer(device, other) for other in others
    )
    if not _all(reach, device):
        log.debug("sums of few numbers: through NCCL, since not every GPU can write to all others")
        return None
    from adamas_kernels.triton.sums import SLOTS, Sums
    from torch.distributed import _symmetric_memory as symmetric

    own = symmetric.empty(SLOTS.value, count, CAPACITY, dtype=torch.int64, device=device).zero_()
    everyone = dist.group.WORLD
    assert everyone is not None
    handle = symmetric.rendezvous(own, everyone)
    inboxes = [handle.get_buffer(other, own.shape, own.dtype) for other in range(count)]
    _all(True, device)  # every inbox is empty before anyone writes
    return Sums(rank, inboxes, (own, handle))


def _all(mine: bool, device: torch.device) -> bool:
    """Whether this is true in every rank."""
    told = torch.tensor(int(mine), device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told.item())
