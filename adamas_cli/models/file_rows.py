"""Embeddings that stay in the model's file: a document uses few of their rows, each of them small.

With mapped memory every row would bring in its neighbours, and soon the whole table would count as this
process's memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adamas_cli.models.folder import weight_files

FORMATS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}  # safetensors' names


class StoredRows(nn.Module):
    """`nn.Embedding`, for inference, with rows read from a file.

    offset: of the first row in the file; shape: rows and numbers per row.
    """

    def __init__(self, file: Path, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self._file, self._descriptor = file, os.open(file, os.O_RDONLY)
        self._offset, self._dtype = offset, dtype
        self.num_embeddings, self.embedding_dim = shape

    @property
    def weight(self) -> Tensor:
        """All rows, mapped: for models that ask for their device or compute with them."""
        size = self.num_embeddings * self.embedding_dim * self._dtype.itemsize
        mapped = np.memmap(self._file, np.uint8, mode="c", offset=self._offset, shape=size)
        return torch.from_numpy(mapped).view(self._dtype).view(self.num_embeddings, self.embedding_dim)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> rows [..., embedding_dim]. Raises IndexError for an invalid id."""
        size = self.embedding_dim * self._dtype.itemsize
        tokens = ids.flatten().tolist()
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.num_embeddings:
            raise IndexError(f"ids from {min(tokens)} to {max(tokens)} in a table of {self.num_embeddings}")
        read = {token: os.pread(self._descriptor, size, self._offset + token * size) for token in set(tokens)}
        rows = torch.frombuffer(
            bytearray().join(read[token] for token in tokens) or bytearray(size), dtype=self._dtype
        )
        return rows[: len(tokens) * self.embedding_dim].reshape(*ids.shape, self.embedding_dim)


def leave_in_file(model: nn.Module, directory: Path, changed: Collection[str] = ()) -> None:
    """Replace the embeddings of a CPU model whose rows are in its file unchanged. Others are left alone, such
    as the `changed` ones, by name.
    """
    if not hasattr(os, "pread"):
        return
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Embedding or name in changed:
            continue
        stored = _find(directory, f"{name}.weight", module.weight)
        if stored is not None:
            model.set_submodule(name, stored)


def _find(directory: Path, name: str, weight: Tensor) -> StoredRows | None:
    for file in filter(Path.is_file, weight_files(directory)):  # a folder may have no weights of its own
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            entry = json.loads(stream.read(length)).get(name)
        if entry is None:
            continue
        if entry["dtype"] != FORMATS.get(weight.dtype) or entry["shape"] != list(weight.shape):
            return None
        rows, width = weight.shape
        return StoredRows(file, 8 + length + entry["data_offsets"][0], (rows, width), weight.dtype)
    return None
