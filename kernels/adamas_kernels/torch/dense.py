"""Full attention of one or a few new tokens, which are appended to the layer's buffers."""

from __future__ import annotations

from torch import Tensor

from adamas_kernels.contract import DenseCache, check_room, equal_length, ring_rows
from adamas_kernels.packed import kept_sum, pack_like, read
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
    cache.keys[:, :, rows] = pack_like(cache.keys, keys, cache.centre)
    cache.values[:, :, rows] = pack_like(cache.values, values)
    if cache.value_sum is not None:
        cache.value_sum += kept_sum(cache.values[:, :, rows], values)
    seen = ring_rows(softmax.first_seen(start), end, cache.capacity)
    seen_keys = read(cache.keys[:, :, seen], queries.dtype, cache.centre)
    seen_values = read(cache.values[:, :, seen], queries.dtype)
    return causal_attention(queries, seen_keys, seen_values, scaling, softmax)
