"""A tensor as a GGUF file holds it, and operations that leave its numbers packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from adamas_kernels.blocks import PLAIN, BlockWeight, block_size, row_bytes, unpack
from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """Rows of blocks. kind: of `BlockWeight`. data: uint8, row after row, often in a mapped file; shape: of
    the numbers, those of a row last. order: for a linear layer's weight, the input of each column; None if
    they are in order.
    """

    kind: str
    data: Tensor
    shape: tuple[int, ...]
    order: Tensor | None = None

    @property
    def block_weight(self) -> BlockWeight:
        """As a matrix; all leading axes count as rows."""
        columns = self.shape[-1] if self.shape else 1
        return BlockWeight(self.kind, self.data.view(-1, row_bytes(self.kind, columns)), columns)

    def numbers(self) -> Tensor:
        """Its numbers as float32, in its shape, with columns in the order of inputs."""
        numbers = unpack(self.block_weight).view(self.shape)
        return numbers if self.order is None else numbers[:, self.order.cpu().argsort()]

    def of_shape(self, *shape: int) -> Stored:
        """The same numbers in another shape. Rows of a quantized tensor must stay whole."""
        if self.kind in PLAIN or shape[-1:] == self.shape[-1:]:
            return Stored(self.kind, self.data, shape)
        raise ValueError(f"rows of {self.kind} cannot be cut")

    def pick(self, index: Tensor) -> Stored:
        """The entries at these places of the first axis, in this order: rows, or single numbers."""
        if len(self.shape) == 1:
            return stored(self.numbers()[index])
        data = self.data.view(self.shape[0], -1)[index].flatten()
        return Stored(self.kind, data, (len(index), *self.shape[1:]))

    def pick_columns(self, index: Tensor) -> Stored:
        """A matrix with reordered columns: in blocks if whole blocks move together, else as numbers."""
        width, size = block_size(self.kind)
        blocks = index.view(-1, width)
        first = blocks[:, :1]
        if not torch.equal(blocks, first + torch.arange(width)) or bool((first % width).any()):
            return stored(self.numbers()[:, index])
        rows, columns = self.shape
        data = self.data.view(rows, columns // width, size)[:, first.flatten() // width]
        return Stored(self.kind, data.flatten(), self.shape)

    def part(self, first: int, last: int) -> Stored:
        """A range of the first axis, as a view if it has rows."""
        if len(self.shape) == 1:
            return stored(self.numbers()[first:last])
        data = self.data.view(self.shape[0], -1)[first:last]
        return Stored(self.kind, data.reshape(-1), (last - first, *self.shape[1:]), self.order)

    def columns(self, first: int, last: int) -> Stored:
        """A range of the columns of a matrix, which are in order; both ends are borders of blocks."""
        assert self.order is None
        rows, columns = self.shape
        start, end = row_bytes(self.kind, first), row_bytes(self.kind, last)
        data = self.data.view(rows, row_bytes(self.kind, columns))[:, start:end]
        return Stored(self.kind, data.flatten(), (rows, last - first))


def stored(numbers: Tensor) -> Stored:
    """Computed numbers, in float32 as in a file."""
    numbers = numbers.to(torch.float32).contiguous()
    return Stored("F32", numbers.view(-1).view(torch.uint8), tuple(numbers.shape))


def joined(parts: Sequence[Stored], axis: int = 0) -> Stored:
    """Tensors concatenated along an axis other than the last, in blocks if they have the same type."""
    first = parts[0]
    if any(part.kind != first.kind for part in parts) or len(first.shape) == 1:
        return stored(torch.cat([part.numbers() for part in parts], axis))
    outer = first.shape[:axis]
    data = torch.cat([part.data.view(prod(outer), -1) for part in parts], 1).flatten()
    length = sum(part.shape[axis] for part in parts)
    return Stored(first.kind, data, (*outer, length, *first.shape[axis + 1 :]))
