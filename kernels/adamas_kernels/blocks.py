"""Weights as stored in files: rows of blocks with codes and scales, in one of GGUF's types, or in one of OWN
for formats of other files that GGUF does not have.

GGUF's types and their layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

# Plain numbers, in blocks of one.
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class BlockWeight:
    """A weight [rows, columns] as rows of blocks.

    kind: a type's name, such as "Q4_K". data: uint8 [rows, bytes of a row], which may be a mapped file; each
    row is contiguous and holds whole blocks, `columns` numbers in total.
    """

    kind: str
    data: Tensor
    columns: int

    def __post_init__(self) -> None:
        assert self.data.shape[1] == row_bytes(self.kind, self.columns), (self.kind, self.data.shape)

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return len(self.data)

    @property
    def bytes(self) -> int:
        """Bytes read by one product with a vector."""
        return self.data.numel()

    def part(self, first: int, last: int) -> BlockWeight:
        """Some of the rows, as a view."""
        return BlockWeight(self.kind, self.data[first:last], self.columns)


@dataclass(frozen=True)
class OwnKind:
    """A type that GGUF does not have. numbers, size: numbers and bytes of a block. unpack: from blocks uint8
    [N, size] to float32 [N, numbers].
    """

    numbers: int
    size: int
    unpack: Callable[[Tensor], Tensor]


def _halves(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, as float32 [N, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _q8_m(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * blocks[:, 4:].contiguous().view(torch.int8).float() + _halves(blocks, 2)


def _f8(blocks: Tensor) -> Tensor:
    codes = blocks[:, 2:].int()
    return _halves(blocks, 0) * ((codes & 128) << 8 | (codes & 127) << 7).short().view(torch.float16).float()


# Q8_M: Q8_0 with an offset: a float16 scale, a float16 to add, and 32 int8. Zero points near the middle of
# the codes give a small offset, whose rounding matters less than that of a minimum.
# F8: a float16 scale, and 32 8-bit floats (E4M3). Shifted up by 7 bits, such a float is the float16 of 1/256
# of its value. The scale applies to that: 256 times the model's scale, which would often be subnormal.
OWN = {"Q8_M": OwnKind(32, 36, _q8_m), "F8": OwnKind(32, 34, _f8)}


def block_size(kind: str) -> tuple[int, int]:
    """Numbers and bytes of a block of this kind. Raises KeyError for an unknown kind."""
    if kind in OWN:
        return OWN[kind].numbers, OWN[kind].size
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` numbers, which must fill whole blocks."""
    numbers, size = block_size(kind)
    if columns % numbers:
        raise ValueError(f"{columns} numbers are no whole blocks of {kind}, which hold {numbers}")
    return columns // numbers * size


def unpack(weight: BlockWeight) -> Tensor:
    """The weight as float32 [rows, columns] on the CPU: the numbers every backend computes with."""
    if weight.kind in PLAIN:
        return weight.data.cpu().view(PLAIN[weight.kind]).float()
    if weight.kind in OWN:
        own = OWN[weight.kind]
        return own.unpack(weight.data.cpu().reshape(-1, own.size)).view(weight.rows, weight.columns)
    raw = np.ascontiguousarray(weight.data.cpu().numpy())
    numbers = dequantize(raw.reshape(-1), GGMLQuantizationType[weight.kind])
    return torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).view(weight.rows, weight.columns)
