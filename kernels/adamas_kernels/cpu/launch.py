"""Shared by launches of dense and sparse steps: addresses of a layer's buffers, and a step's arguments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.contract import AnyCache, DenseCache, LayerCache, check_room, check_step
from adamas_kernels.cpu.records import STEP, describe_dense, describe_layer
from adamas_kernels.reference import padded_dim
from adamas_kernels.softmax import Softmax


class Layer:
    """The addresses of one cache's buffers, and the records of its steps, one per sequence."""

    def __init__(self, cache: AnyCache) -> None:
        self._tensors = _tensors(cache)
        self._record = describe_layer(cache) if isinstance(cache, LayerCache) else describe_dense(cache)
        self.steps = np.zeros(len(cache.length), STEP)
        self.addresses = self.steps.ctypes.data, self._record.ctypes.data
        self.lengths = cache.length.numpy()

    def describes(self, cache: AnyCache) -> bool:
        """Whether the cache still has the same tensors."""
        mine, its = self._tensors, _tensors(cache)
        return len(mine) == len(its) and all(a is b for a, b in zip(mine, its, strict=True))


@dataclass(slots=True)
class Step:
    """The inputs and outputs of a step.

    shape: batch, KV heads, group, new tokens, D, D_v and P; lengths: tokens of each sequence before the step;
    inputs: queries, keys and values; sinks: learned sinks, float32 [H]; both are kept alive here. window,
    ring, softcap: see STEP.
    """

    shape: tuple[int, int, int, int, int, int, int]
    lengths: list[int]
    inputs: tuple[Tensor, Tensor, Tensor]
    out: Tensor
    lse: Tensor
    window: int
    ring: int
    softcap: float
    sinks: Tensor | None

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence after the step."""
        return max(self.lengths) + self.shape[3]

    @property
    def pairs(self) -> int:
        """KV heads of all sequences."""
        return self.shape[0] * self.shape[1]

    @property
    def per_head(self) -> int:
        """Queries of a KV head."""
        return self.shape[2] * self.shape[3]

    def addresses(self, tally: Tensor | None = None) -> tuple[int, ...]:
        """The fields of a STEP from `query` to `sink_scores`."""
        counted = (0, 0, 0, 0) if tally is None else (tally.data_ptr(), *tally.stride()[:2], 0)
        queries, keys, values = self.inputs
        return (
            queries.data_ptr(), *queries.stride()[:3], keys.data_ptr(), *keys.stride()[:3],
            values.data_ptr(), *values.stride()[:3], self.out.data_ptr(), *self.out.stride()[:3],
            self.lse.data_ptr(), *counted, 0,
            self.window, self.ring, 0 if self.sinks is None else self.sinks.data_ptr(),
        )  # fmt: skip


def begin(
    queries: Tensor, keys: Tensor, values: Tensor, cache: AnyCache, layer: Layer, softmax: Softmax
) -> Step:
    """The step of these new tokens. Raises ValueError if it does not fit the cache."""
    check_step(queries, keys, values, cache, softmax)
    batch, heads, new, dim = queries.shape
    kv_heads, dim_v = values.shape[1], values.shape[3]
    lengths = layer.lengths.tolist()
    if len(cache.keys) != batch:
        raise ValueError(f"keys {tuple(keys.shape)} do not fit the cache's {tuple(cache.keys.shape)}")
    check_room(max(lengths) + new, new, cache, softmax)
    dtype = queries.dtype
    inputs = readable(queries, dtype), readable(keys, dtype), readable(values, dtype)
    out = torch.empty(batch, heads, new, dim_v, dtype=queries.dtype)
    shape = batch, kv_heads, heads // kv_heads, new, dim, dim_v, padded_dim(dim)
    window, sinks = softmax.window or 0, softmax.sinks
    return Step(
        shape, lengths, inputs, out, torch.empty(batch, heads, new), window, cache.capacity if window else 0,
        softmax.softcap, None if sinks is None else readable(sinks, torch.float32),
    )  # fmt: skip


def readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype with its last dimension contiguous; not copied if it already is."""
    x = x if x.dtype == dtype else x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def _tensors(cache: AnyCache) -> tuple[Tensor | None, ...]:
    buffers = cache.keys, cache.values, cache.value_sum, cache.length, cache.centre
    if isinstance(cache, DenseCache):
        return buffers
    book = cache.codebook
    return (*buffers, cache.codes, cache.scales, book.mean, book.edge, book.balance, book.noise)
