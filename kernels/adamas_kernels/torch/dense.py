"""Full attention of one or few new tokens, which are appended to the layer's buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from adamas_kernels.contract import DenseCache, check_room, equal_length, ring_rows
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.prefill import causal_attention


def attend_fully(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: DenseCache,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor]:
    """See `Backend.dense_step`."""
    start, new = equal_length(cache.length), keys.shape[2]
    end = start + new
    check_room(end, new, cache, softmax)
    rows = ring_rows(start, end, cache.capacity)
    cache.keys[:, :, rows] = keys.to(cache.keys.dtype)
    cache.values[:, :, rows] = values.to(cache.values.dtype)
    if cache.value_sum is not None:
        cache.value_sum += values.sum(2, dtype=torch.float32)
    seen = ring_rows(softmax.first_seen(start), end, cache.capacity)
    return causal_attention(queries, cache.keys[:, :, seen], cache.values[:, :, seen], scaling, softmax)
