"""The cache of one layer, made of existing keys and values."""

from __future__ import annotations

import torch
from adamas_kernels.contract import Backend, LayerCache, SparseSettings, allocate_codes, fit_codebook
from adamas_kernels.reference import query_power
from torch import Tensor


def coded_cache(
    keys: Tensor, values: Tensor, length: int, queries: Tensor, backend: Backend, settings: SparseSettings
) -> LayerCache:
    """A cache of `length` tokens with their codes; it takes over keys and values [B, K, C, D] as buffers.

    queries: [B, H, N, D], to which the codebook is fitted along with the keys.
    """
    codes, scales = allocate_codes(keys, keys.shape[2])
    seen = slice(0, length)
    book = fit_codebook(keys[:, :, seen], query_power(queries, keys.shape[1]), settings)
    backend.encode_keys(keys[:, :, seen], book, codes[:, :, seen], scales[:, :, seen])
    total = values[:, :, seen].sum(2, dtype=torch.float32)
    tokens = torch.full((len(keys),), length, dtype=torch.int32, device=keys.device)
    return LayerCache(keys, values, codes, scales, total, book, tokens)
