"""Weights of linear layers in 8 or 4 bits, as the CPU's decode step reads them, and the model they make.

Sixteen rows form a strip, so that one row lies in each lane; 32 inputs form a group with one scale for each
row. Decode reads a weight once for each token and is as fast as memory gives it, so fewer bits are more
tokens; prefill unpacks a block at a time into the number format of its matrix products.

Many weights come from files whose groups of 32 have a grid of their own (GGUF's Q4_0 to Q8_0, Q4_K). Where a
group's values lie on such a grid, the same grid is kept and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32  # inputs that share a scale
STRIP = 16  # rows that lie side by side
FORMAT = 1  # grows when what the tensors mean changes


@dataclass(frozen=True)
class PackedWeight:
    """A weight [rows, columns] as codes, scales and offsets.

    codes: uint8 [strips, groups, 4 bits, 16]: one int8 for each input and row, or two unsigned 4-bit codes,
    input i of a group in the low and i + 16 in the high half. scales, offsets: float16 [strips, groups, 16],
    offsets only with 4 bits. A weight is unit * (scale * code + offset); rows and columns are filled up with
    zeros.
    """

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None
    unit: float  # a power of two, which keeps the scales within float16
    rows: int
    columns: int

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 8 if self.offsets is None else 4

    @property
    def bytes(self) -> int:
        """Bytes that one product with a vector reads."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(x.numel() * x.element_size() for x in parts if x is not None)

    def strips(self, first: int, last: int) -> PackedWeight:
        """Some of the strips, as a view."""
        part = slice(first, last)
        offsets = None if self.offsets is None else self.offsets[part]
        rows = min(self.rows, last * STRIP) - first * STRIP
        return PackedWeight(self.codes[part], self.scales[part], offsets, self.unit, rows, self.columns)


@dataclass(frozen=True)
class Linear:
    """A packed weight, and its bias, float32, filled up to whole strips."""

    weight: PackedWeight
    bias: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One layer: norms are float32 [hidden], those of heads [head_dim]."""

    attention_norm: Tensor
    query: Linear
    key: Linear
    value: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class DecoderWeights:
    """A model: embedding, from a token to its row [hidden] of any number format; the layers; norm and head
    behind them.
    """

    embedding: Callable[[int], Tensor]
    hidden: int
    layers: Sequence[LayerWeights]
    norm: Tensor
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float


def strips_and_groups(rows: int, columns: int) -> tuple[int, int]:
    """How many strips and groups a weight [rows, columns] has."""
    return -(-rows // STRIP), -(-columns // GROUP)


def allocate(rows: int, columns: int, bits: int, unit: float) -> PackedWeight:
    """An unwritten packed weight."""
    strips, groups = strips_and_groups(rows, columns)
    codes = torch.empty(strips, groups, GROUP * bits // 8, STRIP, dtype=torch.uint8)
    scales = torch.empty(strips, groups, STRIP, dtype=torch.float16)
    return PackedWeight(codes, scales, torch.empty_like(scales) if bits == 4 else None, unit, rows, columns)


def unpack(weight: PackedWeight) -> Tensor:
    """The weight as float32 [rows, columns]: what the compiled functions compute with."""
    if weight.offsets is None:
        codes = weight.codes.view(torch.int8).float()
        values = codes * weight.scales.float().unsqueeze(2)
    else:
        codes = torch.cat([weight.codes & 15, weight.codes >> 4], 2).float()
        values = codes * weight.scales.float().unsqueeze(2) + weight.offsets.float().unsqueeze(2)
    strips, groups = weight.scales.shape[:2]
    by_row = values.permute(0, 3, 1, 2).reshape(strips * STRIP, groups * GROUP)
    return by_row[: weight.rows, : weight.columns] * weight.unit
