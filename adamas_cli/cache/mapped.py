"""A range of GPU addresses whose first part has memory and can grow.

torch's allocator cannot extend a tensor in place. CUDA's virtual memory management can: addresses cost
nothing, and memory is mapped to them in steps of 2 MiB
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VA.html). So keys and values stay in place, and
captured steps that read them stay valid.
"""

from __future__ import annotations

import math
import weakref
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.releasing import release, release_waiting

_mapped: dict[int, int] = {}  # bytes mapped now, by GPU index


def mapped_bytes(device: torch.device) -> int:
    """Bytes of a GPU's memory that are mapped; torch's allocator does not count them."""
    return _mapped.get(_index(device), 0)


@cache
def maps_memory(device: torch.device) -> bool:
    """Whether a device has this kind of memory: NVIDIA's bindings come with torch's builds for CUDA."""
    if device.type != "cuda" or find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return False
    from cuda.bindings import driver

    supported = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
    failed, answer = driver.cuDeviceGetAttribute(supported, _index(device))
    return not failed and bool(answer)


class MappedBuffer(TokenBuffer):
    """Keys or values in mapped memory, where up to `limit` tokens are never copied."""

    def __init__(self, like: Tensor, room: int, limit: int) -> None:
        batch, heads, _, dim = like.shape
        self._like = like.new_empty(batch, heads, 0, dim)
        self._tokens_first = True
        memory = MappedMemory(like.device, limit * self._token_bytes)
        memory.grow(max(1, room) * self._token_bytes)
        numbers = memory.tensor()[: limit * self._token_bytes].view(like.dtype)
        self._tensor = numbers.view(limit, batch, heads, dim).permute(1, 2, 0, 3)
        self._memory = memory
        self._note_room()

    @property
    def room(self) -> int:
        """Tokens there is memory for."""
        return self._room

    def grow(self, tokens: int, kept: int) -> bool:
        """See `TokenBuffer.grow`."""
        if tokens <= self._room:  # checked for every token
            return False
        if tokens > self._tensor.shape[2]:
            return super().grow(tokens, kept)
        self._memory.grow(tokens * self._token_bytes)
        self._note_room()
        return False

    def _larger(self, tokens: int) -> TokenBuffer:
        return MappedBuffer(self._like, tokens, 2 * tokens)

    def _note_room(self) -> None:
        self._room = min(self._tensor.shape[2], self._memory.room // self._token_bytes)

    @property
    def _token_bytes(self) -> int:
        batch, heads, _, dim = self._like.shape
        return math.prod((batch, heads, dim)) * self._like.element_size()


class MappedMemory:
    """Addresses for `size` bytes on a GPU that `maps_memory`. Contents stay in place.

    The memory is returned when this object and every tensor of its bytes are gone.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        from cuda.bindings import driver

        torch.cuda.init()
        release_waiting()
        self._device, self._index = device, _index(device)
        self._kind = driver.CUmemAllocationProp()
        self._kind.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._kind.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._kind.location.id = self._index
        self._access = driver.CUmemAccessDesc()
        self._access.location = self._kind.location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        finest = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._step = _checked(driver.cuMemGetAllocationGranularity(self._kind, finest))
        self._size = -(-size // self._step) * self._step
        self._base = int(_checked(driver.cuMemAddressReserve(self._size, 0, 0, 0)))
        self._parts: list[int] = []  # bytes of each piece of memory, by address
        unmap = partial(_unmap, self._index, self._base, self._size, self._parts)
        finalizer = weakref.finalize(self, release, device, unmap)
        finalizer.atexit = False  # at exit the system frees everything

    @property
    def room(self) -> int:
        """Bytes from the start that have memory."""
        return sum(self._parts)

    def grow(self, size: int) -> None:
        """Map memory for the first `size` bytes. Raises torch.OutOfMemoryError if none is left, and
        ValueError if there are no addresses.
        """
        from cuda.bindings import driver

        if size <= self.room:
            return
        if size > self._size:
            raise ValueError(f"{size:,} bytes do not fit into addresses for {self._size:,}")
        more = -(-(size - self.room) // self._step) * self._step
        failed, memory = driver.cuMemCreate(more, self._kind, 0)
        if failed == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            torch.cuda.empty_cache()  # torch holds on to freed memory
            failed, memory = driver.cuMemCreate(more, self._kind, 0)
        if failed == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"no {more:,} bytes are left on {self._device}")
        _checked((failed,))
        at = self._base + self.room
        try:
            _checked(driver.cuMemMap(at, more, 0, memory, 0))
            _checked(driver.cuMemSetAccess(at, more, [self._access], 1))
            self._parts.append(more)
            _mapped[self._index] = _mapped.get(self._index, 0) + more
        except BaseException:  # interruptions too: memory that is not counted must not be mapped
            if at == self._base + self.room:
                driver.cuMemUnmap(at, more)
            raise
        finally:
            driver.cuMemRelease(memory)  # mapped memory stays until it is unmapped

    def tensor(self) -> Tensor:
        """All bytes, uint8 [size], with memory or without; something must be mapped."""
        return torch.as_tensor(self, device=self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html"""
        return {"shape": (self._size,), "typestr": "|u1", "data": (self._base, False), "version": 3}


def _unmap(index: int, base: int, size: int, parts: list[int]) -> None:
    """Return memory and addresses that the GPU no longer uses."""
    from cuda.bindings import driver

    at = base
    for part in parts:
        _checked(driver.cuMemUnmap(at, part))
        at += part
    _checked(driver.cuMemAddressFree(base, size))
    _mapped[index] = _mapped.get(index, 0) - (at - base)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _checked(answer: tuple[Any, ...]) -> Any:
    """The result of a driver call. Raises torch.OutOfMemoryError or another RuntimeError if it failed."""
    failed, *found = answer
    if failed:
        if getattr(failed, "name", "") == "CUDA_ERROR_OUT_OF_MEMORY":
            raise torch.OutOfMemoryError("CUDA's driver is out of memory")
        raise RuntimeError(f"CUDA's driver says {failed.name}")
    return found[0] if found else None
