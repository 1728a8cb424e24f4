"""Full attention of one or few new tokens, which are appended to the layer's buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from adamas_kernels.contract import DenseCache, equal_length
from adamas_kernels.torch.prefill import causal_attention


def attend_fully(
    queries: Tensor, keys: Tensor, values: Tensor, cache: DenseCache, scaling: float
) -> tuple[Tensor, Tensor]:
    """See `Backend.dense_step`."""
    start = equal_length(cache.length)
    end = start + keys.shape[2]
    cache.keys[:, :, start:end] = keys
    cache.values[:, :, start:end] = values
    cache.value_sum += values.sum(2, dtype=torch.float32)
    return causal_attention(queries, cache.keys[:, :, :end], cache.values[:, :, :end], scaling)
