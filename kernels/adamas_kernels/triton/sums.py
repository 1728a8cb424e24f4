"""The sum of a few numbers over the GPUs of one host, in one launch on each.

A decode step that is split over GPUs sums a token's numbers twice a layer, so what counts is the time of one
message. Each GPU writes its numbers into an inbox of every GPU, each with the number of the sum in the same
8 bytes, which arrive together: whoever sees that number has the data, and nothing waits at a barrier. (NCCL's
LL protocol sends such words too: https://arxiv.org/abs/2507.04786.) A GPU sends its numbers of the next sum
after it has read those of this one, so two slots of an inbox in turn are enough.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.launch import chains

BLOCK = 256  # numbers of a program
SLOTS = tl.constexpr(2)


@triton.jit
def sum_kernel(
    x_ptr, inbox_ptrs, epoch_ptr, stop_ptr, rank, count,
    RANKS: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (BLOCK numbers): x [count] += those of all other ranks, in the order of ranks.

    inbox_ptrs: int64 [RANKS], the address of each rank's inbox, int64 [SLOTS, RANKS, CAPACITY]. epoch_ptr:
    int32, for each program, how many sums it has made. stop_ptr: int32 [1]; not 0 ends all waiting.
    CHAINED: started before the previous launch ended, and lets the next one start at once.
    """
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    epoch = tl.load(epoch_ptr + program) + 1
    slot = epoch & 1
    x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    stamp = epoch.to(tl.int64) << 32
    message = stamp | (x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    mine = (slot * RANKS + rank) * CAPACITY + at
    for other in tl.static_range(RANKS):
        inbox = tl.load(inbox_ptrs + other).to(tl.pointer_type(tl.int64))
        tl.store(inbox + mine, message, mask=there)
    inbox = tl.load(inbox_ptrs + rank).to(tl.pointer_type(tl.int64))
    total = tl.zeros((BLOCK,), tl.float32)
    for other in tl.static_range(RANKS):
        place = inbox + (slot * RANKS + other) * CAPACITY + at
        got = tl.load(place, mask=there, other=0, volatile=True)
        stopped = tl.load(stop_ptr, volatile=True)
        # Threads may read `stopped` at different times, so it counts only through the sum, which they share.
        while tl.sum((there & (stopped == 0) & ((got >> 32).to(tl.int32) != epoch)).to(tl.int32), axis=0) > 0:
            got = tl.load(place, mask=there, other=0, volatile=True)
            stopped = tl.load(stop_ptr, volatile=True)
        total += got.to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(x_ptr + at, total.to(x_ptr.dtype.element_ty), mask=there)
    tl.store(epoch_ptr + program, epoch)


class Sums:
    """One rank's end of sums of up to `capacity` numbers. inboxes: of all ranks, int64 [2, ranks, capacity]
    of zeros, which every rank can write to. memory: what must live as long, since they do not own theirs.
    chained: whether launches overlap; None where the device allows it.
    """

    def __init__(
        self, rank: int, inboxes: list[Tensor], memory: object = None, *, chained: bool | None = None
    ) -> None:
        self.rank, self._inboxes, self._memory, self._chained = rank, inboxes, memory, chained
        own = inboxes[rank]
        self.capacity = own.shape[2]
        self._addresses = torch.tensor([inbox.data_ptr() for inbox in inboxes], device=own.device)
        self._epochs = torch.zeros(triton.cdiv(self.capacity, BLOCK), dtype=torch.int32, device=own.device)
        self._stop = torch.zeros(1, dtype=torch.int32, device=own.device)
        if own.is_cuda:
            self._stopping = torch.cuda.Stream(own.device)
            self._one = torch.ones(1, dtype=torch.int32, pin_memory=True)

    def takes(self, numbers: Tensor) -> bool:
        """Whether `add` can sum these."""
        return (
            numbers.device == self._stop.device
            and numbers.is_contiguous()
            and numbers.is_floating_point()
            and numbers.itemsize <= torch.float32.itemsize
            and numbers.numel() <= self.capacity
        )

    def add(self, numbers: Tensor) -> None:
        """Replace numbers by their sum over all ranks, which is rounded once and has the same bits in each.
        All ranks must call this for as many numbers, which `takes` accepts.
        """
        count = numbers.numel()
        chained = chains(numbers.device) if self._chained is None else self._chained
        sum_kernel[(triton.cdiv(count, BLOCK),)](
            numbers, self._addresses, self._epochs, self._stop, self.rank, count,
            RANKS=len(self._inboxes), CAPACITY=self.capacity, BLOCK=BLOCK, CHAINED=chained,
            **({"launch_pdl": True} if chained else {}),
        )  # fmt: skip

    def stop(self) -> None:
        """End all waiting, now and later: sums are wrong from here on. Any thread may call this."""
        if not self._stop.is_cuda:
            self._stop.fill_(1)
            return
        # By a copy in a stream of its own: kernels that wait may fill the GPU, and no other would begin.
        with torch.cuda.stream(self._stopping):
            self._stop.copy_(self._one, non_blocking=True)
