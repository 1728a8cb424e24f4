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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.releasing import release, release_waiting

PAGE = 2 << 20  # bytes, the least that is mapped on GPUs of today
_mapped: dict[int, int] = {}  # bytes of memory in use now, by GPU index


def mapped_bytes(device: torch.device) -> int:
    """Bytes of a GPU's memory that are mapped; torch's allocator does not count them."""
    return _mapped.get(_index(device), 0)


class Part(NamedTuple):
    """A piece of mapped memory, in bytes. shared: whether another range had it first, which counts it."""

    size: int
    shared: bool


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
    """Keys or values in mapped memory, where up to `limit` tokens are never copied.

    forks: in pages that forks can share. of: a buffer whose first `kept` tokens this one begins with; all
    whole pages of them are shared.
    """

    _memory: MappedMemory

    def __init__(
        self,
        like: Tensor,
        room: int,
        limit: int,
        *,
        forks: bool = False,
        of: MappedBuffer | None = None,
        kept: int = 0,
    ) -> None:
        batch, heads, _, dim = like.shape
        self._like = like.new_empty(batch, heads, 0, dim)
        self._tokens_first = True
        memory = MappedMemory(like.device, limit * self._token_bytes, divides=forks)
        shared = 0 if of is None else memory.share(of._memory, kept * self._token_bytes)
        memory.grow(max(1, room) * self._token_bytes)
        numbers = memory.tensor()[: limit * self._token_bytes].view(like.dtype)
        self._tensor = numbers.view(limit, batch, heads, dim).permute(1, 2, 0, 3)
        self._memory: MappedMemory = memory
        self._forks = forks
        self._shared = -(-shared // self._token_bytes)  # tokens that must not change
        if of is not None:
            own = slice(self._shared, kept)
            self.tensor[:, :, own] = of.tensor[:, :, own]
            memory.bytes(shared, self._shared * self._token_bytes).copy_(
                of._memory.bytes(shared, self._shared * self._token_bytes)
            )
        self._note_room()

    @property
    def room(self) -> int:
        """Tokens there is memory for."""
        return self._room

    def grow(self, tokens: int, kept: int) -> bool:
        """See `TokenBuffer.grow`. Shared tokens that are not kept will change, so the others move."""
        if tokens <= self._room and kept >= self._shared:  # checked for every token
            return False
        if tokens > self._tensor.shape[2] or kept < self._shared:
            self._move(tokens, kept)
            return True
        self._memory.grow(tokens * self._token_bytes)
        self._note_room()
        return False

    def fork(self, tokens: int) -> TokenBuffer | None:
        """See `TokenBuffer.fork`."""
        limit = self._tensor.shape[2]
        return MappedBuffer(self._like, tokens, limit, forks=self._forks, of=self, kept=tokens)

    def _larger(self, tokens: int) -> TokenBuffer:
        return MappedBuffer(self._like, tokens, max(2 * tokens, self._tensor.shape[2]), forks=self._forks)

    def _note_room(self) -> None:
        self._room = min(self._tensor.shape[2], self._memory.room // self._token_bytes)

    @property
    def _token_bytes(self) -> int:
        batch, heads, _, dim = self._like.shape
        return math.prod((batch, heads, dim)) * self._like.element_size()


class MappedMemory:
    """Addresses for `size` bytes on a GPU that `maps_memory`. Contents stay in place.

    divides: into pages that can be shared one by one: a driver maps each piece of memory only as a whole. The
    memory is returned when this object and every tensor of its bytes are gone.
    """

    def __init__(self, device: torch.device, size: int, *, divides: bool = False) -> None:
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
        self._piece = self._step if divides else self._size  # bytes that are mapped at once
        self._base = int(_checked(driver.cuMemAddressReserve(self._size, 0, 0, 0)))
        self._parts: list[Part] = []  # by address
        unmap = partial(_unmap, self._index, self._base, self._size, self._parts)
        finalizer = weakref.finalize(self, release, device, unmap)
        finalizer.atexit = False  # at exit the system frees everything

    @property
    def room(self) -> int:
        """Bytes from the start that have memory."""
        return sum(part.size for part in self._parts)

    def grow(self, size: int) -> None:
        """Map memory for the first `size` bytes. Raises torch.OutOfMemoryError if none is left, and
        ValueError if there are no addresses.
        """
        if size > self._size:
            raise ValueError(f"{size:,} bytes do not fit into addresses for {self._size:,}")
        while size > self.room:
            self._map(min(self._piece, -(-(size - self.room) // self._step) * self._step))

    def _map(self, more: int) -> None:
        """Map memory for this many bytes after those that have some."""
        from cuda.bindings import driver

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
            self._parts.append(Part(more, shared=False))
            _mapped[self._index] = _mapped.get(self._index, 0) + more
        except BaseException:  # interruptions too: memory that is not counted must not be mapped
            if at == self._base + self.room:
                driver.cuMemUnmap(at, more)
            raise
        finally:
            driver.cuMemRelease(memory)  # mapped memory stays until it is unmapped

    def share(self, other: MappedMemory, size: int) -> int:
        """Map the memory of another one's first `size` bytes, as far as it is whole pieces, instead of any of
        its own; returns how many bytes that is. Neither may write to them from now on.
        """
        from cuda.bindings import driver

        assert not self._parts
        at = 0
        for part in other._parts:
            if at + part.size > size:
                break
            memory = _checked(driver.cuMemRetainAllocationHandle(other._base + at))
            try:
                _checked(driver.cuMemMap(self._base + at, part.size, 0, memory, 0))
                self._parts.append(Part(part.size, shared=True))
            finally:
                driver.cuMemRelease(memory)
            at += part.size
        if at:
            _checked(driver.cuMemSetAccess(self._base, at, [self._access], 1))
        return at

    def bytes(self, start: int, end: int) -> Tensor:
        """Some of its bytes, uint8 [n], which must have memory."""
        return self.tensor()[start:end]

    def tensor(self) -> Tensor:
        """All bytes, uint8 [size], with memory or without; something must be mapped."""
        return torch.as_tensor(self, device=self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html"""
        return {"shape": (self._size,), "typestr": "|u1", "data": (self._base, False), "version": 3}


def _unmap(index: int, base: int, size: int, parts: list[Part]) -> None:
    """Return memory and addresses that the GPU no longer uses."""
    from cuda.bindings import driver

    at = base
    for part in parts:
        _checked(driver.cuMemUnmap(at, part.size))
        at += part.size
    _checked(driver.cuMemAddressFree(base, size))
    own = sum(part.size for part in parts if not part.shared)
    _mapped[index] = _mapped.get(index, 0) - own


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
