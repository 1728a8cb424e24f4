"""The operations in plain torch, straight from the specification: correct on every device, fast on none."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adamas_kernels import reading, reference
from adamas_kernels.blocks import BlockWeight, unpack
from adamas_kernels.contract import (
    AnyCache,
    AnyWeight,
    DenseCache,
    LayerCache,
    SparseSettings,
    check_step,
    check_unbounded,
)
from adamas_kernels.packed import read
from adamas_kernels.reading import BlockMeans, ReadSettings
from adamas_kernels.reference import Codebook
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.dense import attend_fully
from adamas_kernels.torch.prefill import by_length, causal_attention, joined
from adamas_kernels.torch.step import append, attend_newest

C = TypeVar("C", DenseCache, LayerCache)


class TorchBackend:
    """Every operation in plain torch."""

    name = "torch"

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`."""
        found, lengths = reference.encode_keys(keys, codebook)
        codes.copy_(found)
        scales.copy_(lengths)

    def read_rows(self, rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
        """See `Backend.read_rows`."""
        return read(rows, dtype, centre)

    def prefill(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        lengths: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.prefill`."""
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)
        return by_length(causal_attention, queries, keys, values, scaling, lengths, softmax)

    def summarize(self, keys: Tensor, values: Tensor, means: BlockMeans, start: int) -> None:
        """See `Backend.summarize`."""
        reading.summarize(keys, values, means, start)

    def prefill_sparsely(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        means: BlockMeans,
        scaling: float,
        settings: ReadSettings,
        softmax: Softmax = PLAIN,
        computed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.prefill_sparsely`."""
        check_unbounded(softmax)
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)
        return reading.prefill_sparsely(queries, keys, values, means, scaling, settings, softmax, computed)

    def dense_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: AnyCache,
        scaling: float,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.dense_step`."""
        check_step(queries, keys, values, cache, softmax)
        uncoded = DenseCache(cache.keys, cache.values, cache.value_sum, cache.length, cache.centre)
        return joined(
            attend_fully(queries[part], keys[part], values[part], one, scaling, softmax)
            for part, one in _of_one_length(uncoded)
        )

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`."""
        check_step(queries, keys, values, cache, softmax)
        check_unbounded(softmax)
        return joined(
            attend_newest(
                queries[part],
                append(keys[part], values[part], one),
                scaling,
                settings,
                None if tally is None else tally[part],
                softmax,
            )
            for part, one in _of_one_length(cache)
        )

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """See `Backend.linear`."""
        if isinstance(weight, BlockWeight):
            bias = None if bias is None else bias.to(x.dtype)
            weight = unpack(weight)[:, : x.shape[-1]].to(x.dtype)
        assert isinstance(weight, Tensor)
        return F.linear(x, weight, bias)


def _of_one_length(cache: C) -> list[tuple[slice, C]]:
    """The whole batch if all its sequences have one length, else each sequence: its slice and its cache."""
    if len(set(cache.length.tolist())) == 1:
        return [(slice(None), cache)]
    return [(slice(b, b + 1), one) for b, one in enumerate(cache.sequences())]
