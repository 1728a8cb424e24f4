"""Keys and values in host memory that a GPU reads and writes in place.

The pages are locked, so they are never swapped, and an NVIDIA GPU sees them at the addresses that the host
uses (unified virtual addressing, https://docs.nvidia.com/cuda/cuda-c-programming-guide/). A kernel can
therefore fetch the keys and values of a few chosen tokens over the bus without the host taking part.
"""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.releasing import release, release_waiting
from adamas_cli.machine.memory import memory
from adamas_cli.models.shape import ROW_ALIGNMENT


def sees_host_memory(device: torch.device) -> bool:
    """Whether a device is a GPU that sees locked host memory at the host's addresses."""
    return device.type == "cuda" and torch.version.hip is None and sys.platform == "linux"


class HostRows:
    """The keys and values of one layer in host memory, tokens outermost.

    What a head keeps of a token lies side by side in one row, so that a GPU that fetches it makes one request
    for both: how many it makes at random places bounds it, not how long they are (docs/performance.md).

    seen, host: each part of the rows, [B, K, S, R], as the GPU sees it and as a CPU tensor. For a CPU both
    are one. whole_seen, whole_host: the rows as bytes, [S, B, K, W].
    """

    def __init__(self, likes: Sequence[Tensor], room: int) -> None:
        """likes: the parts, [B, K, N, R] each, of any length."""
        self._likes = [like.new_empty(*like.shape[:2], 0, like.shape[3]) for like in likes]
        self._starts, width = [], 0
        for like in likes:
            self._starts.append(width)
            width += -(-like.shape[3] * like.element_size() // ROW_ALIGNMENT) * ROW_ALIGNMENT
        first = likes[0]
        shape = room, *first.shape[:2], width
        self.written: torch.cuda.Event | None = None  # the last copy that another stream made into it
        if first.is_cuda:
            size = math.prod(shape)
            locked = LockedMemory(first.device, max(1, size))
            self.whole_host, self.whole_seen = (x[:size].view(shape) for x in (locked.host, locked.tensor()))
        else:
            self.whole_host = self.whole_seen = first.new_empty(shape, dtype=torch.uint8)
        self.host, self.seen = self.parts(self.whole_host), self.parts(self.whole_seen)

    @property
    def room(self) -> int:
        """Tokens there is memory for."""
        return len(self.whole_host)

    def parts(self, whole: Tensor) -> list[Tensor]:
        """The parts of rows of bytes [n, B, K, W]: [B, K, n, R] each."""
        found = []
        for start, like in zip(self._starts, self._likes, strict=True):
            part = whole[..., start : start + like.shape[3] * like.element_size()]
            found.append(part.view(like.dtype).permute(1, 2, 0, 3))
        return found

    def move(self, tokens: int, kept: int) -> None:
        """Get other memory for at least this many tokens, with the first `kept` ones in it."""
        larger = HostRows(self._likes, max(tokens, self.room + self.room // 2))
        larger.whole_seen[:kept] = self.whole_seen[:kept]
        vars(self).update(vars(larger))  # at once, and last: an interruption must not leave a mix


class HostBuffer(TokenBuffer):
    """Keys or values of one layer, a part of its `HostRows`."""

    def __init__(self, rows: HostRows, part: int) -> None:
        self.rows, self._part = rows, part

    @property
    def host(self) -> Tensor:
        """The same memory as `tensor`, as a CPU tensor."""
        return self.rows.host[self._part]

    @property
    def tensor(self) -> Tensor:
        """As in `TokenBuffer`; work on the current stream from now on sees everything written."""
        rows = self.rows
        if rows.written is not None:
            torch.cuda.current_stream(rows.whole_seen.device).wait_event(rows.written)
            rows.written = None
        return rows.seen[self._part]

    @property
    def room(self) -> int:
        """Tokens there is memory for."""
        return self.rows.room

    def _move(self, tokens: int, kept: int) -> None:
        """See `TokenBuffer`; the other parts of the rows move as well."""
        _ = self.tensor
        self.rows.move(tokens, kept)

    def lying(self, start: int, end: int) -> Tensor:
        """See `TokenBuffer.lying`; as a CPU tensor, for disks, whose rows are apart. What other streams write
        there is complete once the current stream is.
        """
        _ = self.tensor
        return self.host[0, :, start:end].transpose(0, 1)

    def fork(self, tokens: int) -> None:
        """Forks are copies."""


class LockedMemory:
    """`size` bytes of locked host memory, which is returned when this object and all tensors of `tensor` are
    gone. host: the bytes as a CPU tensor. Raises MemoryError if that many are not free.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        torch.cuda.init()
        release_waiting()
        if size > (free := memory().available):
            raise MemoryError(f"{size:,} bytes of host memory are needed, and {free:,} are free")
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # fewer, larger pages are locked sooner
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.host = torch.frombuffer(pages, dtype=torch.uint8)
        self.host[:: mmap.PAGESIZE] = 0  # pages come from the system by several threads, and to a lock by one
        self._device, self._size = device, size
        failed = int(torch.cuda.cudart().cudaHostRegister(self.host.data_ptr(), size, 0))
        if failed:
            raise MemoryError(f"{size:,} bytes of host memory cannot be locked (CUDA error {failed})")
        unlock = partial(_unlock, self.host)
        weakref.finalize(self, release, device, unlock).atexit = False  # at exit the system frees everything

    def tensor(self) -> Tensor:
        """The bytes as the GPU sees them, uint8 [size]."""
        return torch.as_tensor(self, device=self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html"""
        address = self.host.data_ptr()
        return {"shape": (self._size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _unlock(host: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
