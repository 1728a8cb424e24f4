"""Numbers of the host for a tensor on a device, again and again."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BUFFERS = 4  # fillings on their way at once


class _Buffer(NamedTuple):
    """Pinned memory, and an event after which it may be written again."""

    numbers: Tensor
    array: np.ndarray
    free: torch.cuda.Event


class Filler:
    """Fills a tensor with numbers of the host. A GPU gets them from pinned memory that is kept: a copy from
    other memory waits for all that the GPU was told before, and new pinned memory takes long.
    """

    def __init__(self, place: Tensor) -> None:
        self._place = place
        self._buffers: deque[_Buffer] = deque()

    def fill(self, numbers: np.ndarray) -> None:
        """Changes: the tensor gets these numbers, of its shape and type, after all that uses it now."""
        if not self._place.is_cuda:
            self._place.copy_(torch.from_numpy(numbers))
            return
        buffer = self._buffers.popleft() if len(self._buffers) == BUFFERS else self._make()
        if not buffer.free.query():
            buffer.free.synchronize()
        np.copyto(buffer.array, numbers)
        self._place.copy_(buffer.numbers, non_blocking=True)
        buffer.free.record()
        self._buffers.append(buffer)

    def _make(self) -> _Buffer:
        numbers = torch.empty(self._place.shape, dtype=self._place.dtype, pin_memory=True)
        return _Buffer(numbers, numbers.numpy(), torch.cuda.Event())
