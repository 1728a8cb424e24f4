"""CPU memory that forks of a cache share: the system copies a page when a fork writes to it.

So a document's keys, values and codes are in memory once, however many answers continue from it, and each
answer sees plain tensors. This uses Linux's in-memory files; elsewhere forks are copies.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

import torch
from adamas_kernels.contract import allocate_codes
from torch import Tensor

from adamas_cli.cache.pages import mapped, seen_as

MAPS_FILES = hasattr(os, "memfd_create")
_files: dict[int, tuple[int, int]] = {}  # number and bytes of each file, by the address where it is mapped


def empty_like(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor of this shape that can be forked, or an ordinary one if there is no such
    memory.

    like: sets the device.
    """
    size = max(1, torch.Size(shape).numel()) * dtype.itemsize
    memory = _new(size) if like.device.type == "cpu" and MAPS_FILES else None
    return like.new_empty(shape, dtype=dtype) if memory is None else seen_as(memory, shape, dtype)


def forked(x: Tensor) -> Tensor | None:
    """A tensor with the same numbers; writing to it changes nothing here. None if that takes a copy. While it
    is used, the shared contents must not change here.
    """
    known = _files.get(x.untyped_storage().data_ptr())
    memory = None if known is None else mapped(*known, mmap.MAP_PRIVATE)
    if memory is None:
        return None
    numbers = torch.frombuffer(memory, dtype=torch.uint8)[: x.untyped_storage().nbytes()].view(x.dtype)
    return numbers.as_strided(x.shape, x.stride(), x.storage_offset())


def codes_beside(keys: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """See `allocate_codes`; in the same kind of memory as the keys."""
    if keys.untyped_storage().data_ptr() not in _files:
        return allocate_codes(keys, capacity)
    codes, scales = allocate_codes(keys.to("meta"), capacity)
    words = empty_like(keys, tuple(codes.transpose(-1, -2).shape), codes.dtype)
    return words.transpose(-1, -2), empty_like(keys, tuple(scales.shape), scales.dtype)


def _new(size: int) -> Any:
    """A mapped in-memory file; None if the system has no more."""
    try:
        file = os.memfd_create("adamas")
    except OSError:
        return None
    try:
        os.ftruncate(file, size)
        memory = mapped(file, size, mmap.MAP_SHARED)
    except OSError:
        memory = None
    if memory is None:
        os.close(file)
        return None
    address = ctypes.addressof(memory)
    _files[address] = file, size
    weakref.finalize(memory, _close, address).atexit = False
    return memory


def _close(address: int) -> None:
    """Forget a file; its memory is freed with the last fork."""
    file, _ = _files.pop(address)
    os.close(file)
