"""A small layer that reads a chunk and takes a step, to time how a CPU computes them fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adamas_kernels.blocks import BlockWeight, row_bytes
from adamas_kernels.cpu.backend import CpuBackend
from adamas_kernels.cpu.strips import multiplies

KIND = "Q4_K"  # all kinds of products serve it
ROWS, KEYS, INPUTS, OUTPUTS = 512, 1024, 1024, 512
STEP_OUTPUTS = 16 * OUTPUTS  # more bytes than an L2 cache holds
HEADS, DIM = 1, 64
# Products and attention have about the shares that they have where models of 0.5B parameters read 4K tokens.
OPERATIONS = 2 * ROWS * INPUTS * OUTPUTS
SCALE = 0x2C00  # the float16 1/16: any bytes make codes, but not every scale is finite


def multiplies_bytes() -> bool:
    """Whether this CPU has fast products of bytes."""
    return multiplies(KIND)


class Trial:
    """The layer in one number format, on as many threads as torch uses. in_bytes: see `CpuBackend.rounds`."""

    def __init__(self, dtype: torch.dtype, *, in_bytes: bool, announce: Callable[[str], None]) -> None:
        self._backend = CpuBackend(announce, rounds=in_bytes)
        self._weight = _some_weight()
        self._part = self._weight.part(0, OUTPUTS)
        generator = torch.Generator().manual_seed(0)

        def some(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self._rows = some(ROWS, INPUTS)
        self._queries = some(1, HEADS, ROWS, DIM)
        self._keys, self._values = some(1, 1, KEYS, DIM), some(1, 1, KEYS, DIM)

    def multiply(self) -> None:
        """The product of a chunk: OPERATIONS."""
        self._backend.linear(self._rows, self._part)

    def attend(self) -> None:
        """The attention of a chunk."""
        self._backend.prefill(self._queries, self._keys, self._values, DIM**-0.5)

    def step(self) -> None:
        """The product of one token."""
        self._backend.linear(self._rows[:1], self._weight)


def _some_weight() -> BlockWeight:
    size = STEP_OUTPUTS, row_bytes(KIND, INPUTS)
    data = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    blocks = data.view(-1, row_bytes(KIND, 256))
    blocks[:, :4].view(torch.int16).fill_(SCALE)  # both scales of a block
    return BlockWeight(KIND, data, INPUTS)
