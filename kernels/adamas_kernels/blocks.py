"""Weights as files hold them: rows of blocks, each with its codes and scales, in one of GGUF's types.

The types and their layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor


@dataclass(frozen=True)
class BlockWeight:
    """A weight [rows, columns] as rows of blocks.

    kind: a GGUF type's name, such as "Q4_K". data: uint8 [rows, bytes of a row], which may be a mapped file;
    each row is contiguous and holds whole blocks, columns numbers in all.
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
        """Bytes that one product with a vector reads."""
        return self.data.numel()

    def part(self, first: int, last: int) -> BlockWeight:
        """Some of the rows, as a view."""
        return BlockWeight(self.kind, self.data[first:last], self.columns)


def block_size(kind: str) -> tuple[int, int]:
    """Numbers in a block of this kind, and its bytes. Raises KeyError for a kind that GGUF does not have."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` numbers, which must fill whole blocks."""
    numbers, size = block_size(kind)
    if columns % numbers:
        raise ValueError(f"{columns} numbers are no whole blocks of {kind}, which hold {numbers}")
    return columns // numbers * size


def unpack(weight: BlockWeight) -> Tensor:
    """The weight as float32 [rows, columns], on the CPU: what every backend computes with."""
    raw = np.ascontiguousarray(weight.data.cpu().numpy())
    numbers = dequantize(raw.reshape(-1), GGMLQuantizationType[weight.kind])
    return torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).view(weight.rows, weight.columns)
