"""The means of one layer's blocks of keys and values, for chunks that are read sparsely."""

from __future__ import annotations

import torch
from adamas_kernels.contract import Facts
from adamas_kernels.dispatch import serving
from adamas_kernels.reading import KEY_BLOCK, BlockMeans
from torch import Tensor


class Means:
    """Means of keys and values in other buffers, made when a chunk needs them: once for each whole block."""

    def __init__(self) -> None:
        self._of: BlockMeans | None = None
        self._blocks = 0  # that have means

    def over(self, keys: Tensor, values: Tensor, dtype: torch.dtype, capacity: int) -> BlockMeans:
        """The means of all whole blocks of keys and values, [B, K, S, D], in this dtype. capacity: tokens to
        make room for.
        """
        room = max(capacity, keys.shape[2]) // KEY_BLOCK
        if self._of is None or self._of.blocks < room:
            self._of, self._blocks = BlockMeans.empty(keys, values, room, dtype), 0
        backend = serving("summarize", Facts.of(keys, keys, values))
        backend.summarize(keys, values, self._of, self._blocks * KEY_BLOCK)
        self._blocks = keys.shape[2] // KEY_BLOCK
        return self._of

    def truncate(self, tokens: int) -> None:
        """Drop the means of blocks that reach beyond this many tokens."""
        self._blocks = min(self._blocks, tokens // KEY_BLOCK)
