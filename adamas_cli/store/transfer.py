"""One thread's way from a block on disk to a GPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
import xxhash
from torch import Tensor

from adamas_cli.store.blocks import DamagedError, Stored
from adamas_cli.store.tensors import DTYPES


class Transfer:
    """A stream and pinned memory of its own, so that threads do not wait for each other.

    A thread makes only a few long calls per tensor, during which other threads may run. With smaller pieces,
    which would stay in a core's cache, sixteen threads spent their time passing Python's lock around (5 to 11
    GB/s instead of more than twice that, docs/performance.md).
    """

    def __init__(self, device: torch.device, size: int) -> None:
        """size: bytes of the largest tensor to carry."""
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._buffer = memoryview(self._pinned.numpy().data)
        self._sent = torch.cuda.Event()

    def begin(self) -> None:
        """Later transfers run after everything already queued on the current stream."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def end(self) -> None:
        """The current stream continues only after all transfers."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def scope(self) -> AbstractContextManager[object]:
        """A scope in which tensors are made, filled and used on the transfer's stream."""
        return torch.cuda.stream(self._stream)

    def carry(self, descriptor: int, stored: Stored, place: Tensor) -> None:
        """Copy a tensor of an open block into its contiguous place, within `scope`.

        Raises DamagedError if bytes are missing or the checksum differs, OSError if reading fails.
        """
        self._sent.synchronize()
        buffer = self._buffer[: stored.bytes]
        if os.preadv(descriptor, [buffer], stored.offset) != stored.bytes:
            raise DamagedError("it is cut off")
        if xxhash.xxh3_64_hexdigest(buffer) != stored.checksum:
            raise DamagedError("a checksum differs")
        host = self._pinned[: stored.bytes].view(DTYPES[stored.dtype]).view(stored.shape)
        place.copy_(host, non_blocking=True)
        self._sent.record(self._stream)
