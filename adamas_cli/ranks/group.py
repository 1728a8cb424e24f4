"""The processes that share a model, and what they compute together."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from adamas_cli.ranks.inboxes import open_inboxes
from adamas_cli.ranks.mirror import part_name

if TYPE_CHECKING:
    from adamas_kernels.triton.sums import Sums

HOST = "127.0.0.1"
LEAVING = 3.0  # seconds
LONGEST = timedelta(hours=2)  # a rank may wait while the first one loads or prepares; a lost one is noticed

# torch's own watch over NCCL ends a process with a trace of its stack, and is in the way of captured sums.
OWN_ENDING = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING"

T = TypeVar("T")


class Ranks:
    """One rank's view of them. rank: its number, from 0; count: of all. under_way: whether all ranks compute
    now, so that they meet in what follows; always true but in the first rank, which tells the others what to
    do.

    A sum of numbers on a GPU lies on the current stream and may be captured in a CUDA graph. few: computes
    sums of few numbers between GPUs that can write to each other's memory, in less time than NCCL.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.under_way = rank > 0
        self.few: Sums | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that leads."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """For the user, counted from 1."""
        return part_name(self.rank, self.count)

    def sum(self, numbers: Tensor) -> Tensor:
        """Replace the numbers of every rank by their sum, with the same bits in each; returns them."""
        self._require_all()
        if self.few is not None and self.few.takes(numbers):
            self.few.add(numbers)
        else:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, numbers: Tensor) -> Tensor:
        """The numbers [..., n] of all ranks one after another, [..., n ranks]."""
        self._require_all()
        mine = numbers.contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine)
        return torch.cat(parts, -1)

    def follow(self, numbers: Tensor) -> Tensor:
        """Replace the numbers of every rank by those of the first; returns them."""
        self._require_all()
        dist.broadcast(numbers, 0)
        return numbers

    def agreed(self, value: T) -> T:
        """The first rank's value, in all ranks."""
        self._require_all()
        values = [value]
        dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def each(self, value: int) -> list[int]:
        """The values of all ranks, in order."""
        self._require_all()
        mine = torch.tensor([value])
        values = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(values, mine)
        return [int(one) for one in values]

    def _require_all(self) -> None:
        """Raises RuntimeError where the other ranks would not join, instead of waiting for them."""
        if not self.under_way:
            raise RuntimeError("a model that is split over ranks computes in calls of its timelines only")


def meeting_point(port: int | None = None) -> dist.TCPStore:
    """Where the ranks find each other, on this machine only. port: of the first rank's store, which chooses
    one.
    """
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if port is not None:
        return dist.TCPStore(HOST, port, is_master=False, wait_for_workers=False, timeout=LONGEST)
    with socket.create_server((HOST, 0)) as server:  # of its own, torch would listen to other machines too
        port = server.getsockname()[1]
        return dist.TCPStore(
            HOST,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=LONGEST,
            master_listen_fd=server.detach(),
        )


def join(ranks: Ranks, store: dist.TCPStore, device: torch.device) -> None:
    """Wait until all ranks are here. Numbers on GPUs meet through NCCL or, if they are few, in inboxes; those
    on CPUs through gloo.
    """
    for name in OWN_ENDING:
        os.environ.setdefault(name, "0")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        store=store,
        rank=ranks.rank,
        world_size=ranks.count,
        timeout=LONGEST,
        device_id=device if device.type == "cuda" else None,
    )
    ranks.few = open_inboxes(ranks.rank, ranks.count, device)


def has_joined() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_initialized()


def leave(ranks: Ranks, *, at_once: bool = False) -> None:
    """Leave the other ranks. at_once: end what waits for them, since some of them have ended."""
    if not dist.is_initialized():
        return
    # Not for longer, since it may wait for ranks that do not come any more.
    leaving = threading.Thread(target=_leave, args=(ranks, at_once), daemon=True)
    leaving.start()
    leaving.join(LEAVING)


def _leave(ranks: Ranks, at_once: bool) -> None:
    if at_once:
        unblock(ranks)
    with suppress(Exception):  # it may have been ended by `unblock`
        dist.destroy_process_group()


def unblock(ranks: Ranks) -> None:
    """End what waits for other ranks on a GPU. On CPUs, closed connections do that."""
    if ranks.few is not None:
        ranks.few.stop()
    if dist.is_initialized() and "nccl" in str(dist.get_backend_config()):
        with suppress(Exception):
            dist.distributed_c10d._abort_process_group()
