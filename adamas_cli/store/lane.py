"""One thread's way from a block on disk to a GPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
import xxhash
from torch import Tensor

from adamas_cli.store.blocks import DamagedError, Stored

# Pinned bytes that are read, checked and sent at once: so few that they are still in a core's own cache when
# they are checked, so many that a copy's launch does not count.
SLICE = 2 << 20
SLICES = 3  # of a lane: one is filled while others are on their way


class Lane:
    """A stream and pinned memory of its own: neither copies nor host memory are shared between threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = torch.empty(SLICES * SLICE, dtype=torch.uint8, pin_memory=True).split(SLICE)
        self._buffers = [memoryview(pinned.numpy()) for pinned in self._pinned]
        self._sent = [torch.cuda.Event() for _ in range(SLICES)]
        self._next = 0

    def begin(self) -> None:
        """What is carried from here on comes behind everything that the current stream has been told."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def end(self) -> None:
        """The current stream goes on only behind everything that was carried; the host does not wait."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def scope(self) -> AbstractContextManager[object]:
        """In which tensors are made, filled and used on the lane's stream."""
        return torch.cuda.stream(self._stream)

    def carry(self, descriptor: int, stored: Stored, place: Tensor) -> None:
        """Bring a tensor of an open block to its place, [K, n, D] or of any shape in one piece, in `scope`.

        Raises DamagedError where bytes are missing or the checksum differs, OSError where reading fails.
        """
        checksum = xxhash.xxh3_64()
        at = stored.offset
        for part in [place] if place.is_contiguous() else place:
            target = part.view(-1).view(torch.uint8)
            for piece in target.split(SLICE):
                index, self._next = self._next, (self._next + 1) % SLICES
                self._sent[index].synchronize()
                buffer = self._buffers[index][: len(piece)]
                if os.preadv(descriptor, [buffer], at) != len(piece):
                    raise DamagedError("it is cut off")
                checksum.update(buffer)
                piece.copy_(self._pinned[index][: len(piece)], non_blocking=True)
                self._sent[index].record(self._stream)
                at += len(piece)
        if at != stored.offset + stored.bytes or checksum.hexdigest() != stored.checksum:
            raise DamagedError("a checksum differs")
