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
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.releasing import release, release_waiting
from adamas_cli.machine.memory import memory


def sees_host_memory(device: torch.device) -> bool:
    """Whether a device is a GPU that sees locked host memory at the host's addresses."""
    return device.type == "cuda" and torch.version.hip is None and sys.platform == "linux"


class HostBuffer(TokenBuffer):
    """Keys or values of one layer in host memory, tokens outermost. tensor: as the GPU sees them; host: the
    same memory as a CPU tensor, [B, K, S, D]. For a CPU both are one tensor.
    """

    def __init__(self, like: Tensor, room: int) -> None:
        batch, heads, _, dim = like.shape
        self._like = like.new_empty(batch, heads, 0, dim)
        self._tokens_first = True
        shape = room, batch, heads, dim
        self._written: torch.cuda.Event | None = None  # the last copy that another stream made into it
        if like.is_cuda:
            size = math.prod(shape) * like.element_size()
            locked = LockedMemory(like.device, max(1, size))
            whole = locked.host[:size], locked.tensor()[:size]
            host, seen = (x.view(like.dtype).view(shape).permute(1, 2, 0, 3) for x in whole)
        else:
            host = seen = like.new_empty(shape).permute(1, 2, 0, 3)
        self.host, self._tensor = host, seen

    @property
    def tensor(self) -> Tensor:
        """As in `TokenBuffer`; work on the current stream from now on sees everything written."""
        if self._written is not None:
            torch.cuda.current_stream(self._tensor.device).wait_event(self._written)
            self._written = None
        return self._tensor

    @property
    def room(self) -> int:
        """Tokens there is memory for."""
        return self._tensor.shape[2]

    def lying(self, start: int, end: int) -> Tensor:
        """See `TokenBuffer.lying`; as a CPU tensor, for disks. What other streams write there is complete
        once the current stream is.
        """
        _ = self.tensor
        return self.host[0, :, start:end].transpose(0, 1)

    def written_by(self, copy: torch.cuda.Event | None) -> None:
        """Note a copy into it by another stream; None for one that is complete."""
        self._written = copy

    def fork(self, tokens: int) -> None:
        """Forks are copies."""

    def _larger(self, tokens: int) -> HostBuffer:
        return HostBuffer(self._like, max(tokens, self.room + self.room // 2))


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
