"""One thread's way from a block on disk to a GPU."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager
from functools import cache

import torch
import xxhash
from torch import Tensor

from adamas_cli.store.blocks import DamagedError, Stored
from adamas_cli.store.tensors import DTYPES

HOST, DEVICE = 1, 2  # CUmemorytype of the driver's interface


class _Copy(ctypes.Structure):
    """CUDA_MEMCPY2D of the driver's interface."""

    _fields_ = (
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_type", ctypes.c_int),
        ("source_host", ctypes.c_void_p),
        ("source_device", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("target_x", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_type", ctypes.c_int),
        ("target_host", ctypes.c_void_p),
        ("target_device", ctypes.c_uint64),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


class Lane:
    """A stream and pinned memory of its own, so that threads do not wait for each other.

    What a thread does for a tensor is a handful of long calls in which other threads may run: in smaller
    pieces, which would stay in a core's cache, sixteen threads spent their time handing Python's lock around
    (5 to 11 GB/s instead of more than twice that, docs/performance.md).
    """

    def __init__(self, device: torch.device, size: int) -> None:
        """size: bytes of the largest tensor that is carried."""
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._buffer = memoryview(self._pinned.numpy().data)
        self._sent = torch.cuda.Event()

    def begin(self) -> None:
        """What is carried from here on comes behind everything that the current stream has been told."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def end(self) -> None:
        """The current stream goes on only behind everything that was carried; the pinned memory is free."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._sent.synchronize()  # torch does not know of every copy from this memory

    def scope(self) -> AbstractContextManager[object]:
        """In which tensors are made, filled and used on the lane's stream."""
        return torch.cuda.stream(self._stream)

    def carry(self, descriptor: int, stored: Stored, place: Tensor) -> None:
        """Bring a tensor of an open block to its place, [K, n, D] or of any shape in one piece, in `scope`.

        Raises DamagedError where bytes are missing or the checksum differs, OSError where reading fails.
        """
        self._sent.synchronize()
        buffer = self._buffer[: stored.bytes]
        if os.preadv(descriptor, [buffer], stored.offset) != stored.bytes:
            raise DamagedError("it is cut off")
        if xxhash.xxh3_64_hexdigest(buffer) != stored.checksum:
            raise DamagedError("a checksum differs")
        host = self._pinned[: stored.bytes].view(DTYPES[stored.dtype]).view(stored.shape)
        if place.is_contiguous():
            place.copy_(host, non_blocking=True)
        else:
            self._copy_heads(host, place)
        self._sent.record(self._stream)

    def _copy_heads(self, host: Tensor, place: Tensor) -> None:
        """The tokens of each head, which lie together, in one copy. torch would copy them to memory of their
        own first, and wait for that.
        """
        row = host.stride(0) * host.element_size()
        copy = _Copy(
            source_type=HOST,
            source_host=host.data_ptr(),
            source_pitch=row,
            target_type=DEVICE,
            target_device=place.data_ptr(),
            target_pitch=place.stride(0) * place.element_size(),
            width=row,
            height=len(host),
        )
        failed = _driver().cuMemcpy2DAsync_v2(ctypes.byref(copy), ctypes.c_void_p(self._stream.cuda_stream))
        if failed:
            raise RuntimeError(f"the copy to {self._device} failed with CUDA's error {failed}")
