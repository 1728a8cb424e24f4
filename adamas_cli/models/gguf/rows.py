"""Embeddings that stay in a GGUF file: a document uses few of their rows, each of them small.

With mapped memory every row would bring in its neighbours, and soon the whole table would count as this
process's memory.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from adamas_kernels.blocks import BlockWeight, row_bytes, unpack
from torch import Tensor, nn


class FileRows(nn.Module):
    """`nn.Embedding`, for inference, with rows read from a file and unpacked.

    start: the first row's first byte; kind: a GGUF type's name; shape: rows, and numbers in each; scale: a
    factor for every row, used by some models.
    """

    def __init__(
        self,
        file: Path,
        start: int,
        kind: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self._descriptor = os.open(file, os.O_RDONLY)
        self._start, self._kind, self._dtype, self._scale = start, kind, dtype, scale
        self.num_embeddings, self.embedding_dim = shape

    def __del__(self) -> None:
        os.close(self._descriptor)

    @property
    def weight(self) -> Tensor:
        """Empty: for models that ask for the device and format of their embeddings."""
        return torch.empty(0, dtype=self._dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> rows [..., embedding_dim]. Raises IndexError for an invalid id."""
        tokens, places = torch.unique(ids, return_inverse=True)
        wanted = tokens.tolist()
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.num_embeddings:
            raise IndexError(f"ids from {wanted[0]} to {wanted[-1]} in a table of {self.num_embeddings}")
        size = row_bytes(self._kind, self.embedding_dim)
        data = bytearray().join(os.pread(self._descriptor, size, self._start + id_ * size) for id_ in wanted)
        if not wanted:
            return torch.empty(*ids.shape, self.embedding_dim, dtype=self._dtype)
        packed = torch.frombuffer(data, dtype=torch.uint8).view(len(wanted), size)
        rows = unpack(BlockWeight(self._kind, packed, self.embedding_dim)).to(self._dtype)
        if self._scale is not None:
            rows = rows * torch.tensor(self._scale, dtype=self._dtype)
        return rows[places]
