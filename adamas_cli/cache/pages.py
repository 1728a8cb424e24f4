"""CPU memory in pages of its own: resident when first written to, and the system's again when unused.

The C library's memory is reused: keys and values that are allocated between the temporary tensors of a pass
get the pages of freed ones, and with them all that was promised to a context is resident at once.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor

LEAST = 1 << 18  # bytes; less is not worth a mapping
_FAILED = ctypes.c_void_p(-1).value


def empty_pages(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialized tensor of this shape in pages of its own; an ordinary one if it is small, not on a
    CPU, or if the system has none to give. like: sets device and number format.
    """
    size = torch.Size(shape).numel() * like.dtype.itemsize
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mapped(-1, size, anonymous) if like.device.type == "cpu" and size >= LEAST else None
    return like.new_empty(shape) if memory is None else seen_as(memory, shape, like.dtype)


def mapped(file: int, size: int, kind: int) -> Any:
    """Mapped bytes, of a file or of none (-1), unmapped when no longer used; None if they cannot be mapped.
    kind: of the mapping, as flags of `mmap`.
    """
    library = _library()
    reads_and_writes = mmap.PROT_READ | mmap.PROT_WRITE
    address = library.mmap(None, size, reads_and_writes, kind, file, 0)
    if address == _FAILED:
        return None
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, library.munmap, address, size).atexit = False
    return memory


def seen_as(memory: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Mapped bytes as a tensor, which keeps them."""
    count = torch.Size(shape).numel()
    return torch.frombuffer(memory, dtype=dtype, count=max(1, count))[:count].view(shape)


@cache
def _library() -> ctypes.CDLL:
    """The system's functions. Python's own mappings would each keep a file open."""
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library
