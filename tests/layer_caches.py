"""Caches for tests of the sparse steps: filled from the specification, poisoned where nothing may be read."""

from __future__ import annotations

import torch
from adamas_kernels import reference as ref
from adamas_kernels.ops import Backend, LayerCache, SparseSettings, allocate_codes


def make_cache(
    batch: int,
    kv_heads: int,
    dim: int,
    length: int,
    capacity: int,
    settings: SparseSettings,
    dtype: torch.dtype = torch.float32,
    dim_v: int | None = None,
    keys: torch.Tensor | None = None,
) -> LayerCache:
    """A cache of `length` random tokens, or of these keys [B, K, length, D], whose codes are the reference's.

    Unused rows hold NaN, infinities and random codes.
    """
    filled = slice(0, length)
    buffer = torch.full((batch, kv_heads, capacity, dim), torch.inf, dtype=dtype)
    buffer[:, :, filled] = torch.randn(batch, kv_heads, length, dim).to(dtype) if keys is None else keys
    values = torch.full((batch, kv_heads, capacity, dim_v or dim), torch.nan, dtype=dtype)
    values[:, :, filled] = torch.randn(batch, kv_heads, length, dim_v or dim).to(dtype)
    codes, scales = allocate_codes(buffer, capacity)
    codes.random_(-(2**31), 2**31 - 1)
    scales.fill_(torch.nan)
    book = ref.fit_codebook(buffer[:, :, filled], settings.edge, settings.centred)
    codes[:, :, filled], scales[:, :, filled] = ref.encode_keys(buffer[:, :, filled], book)
    total = values[:, :, filled].float().sum(2)
    return LayerCache(buffer, values, codes, scales, total, book, torch.tensor([length], dtype=torch.int32))


def copied(cache: LayerCache, device: str = "cpu") -> LayerCache:
    """The same cache elsewhere."""
    book = ref.Codebook(cache.codebook.mean.clone().to(device), cache.codebook.edge.clone().to(device))
    codes = cache.codes.transpose(-1, -2).clone().to(device).transpose(-1, -2)
    keys, values, scales, total, length = (
        x.clone().to(device) for x in (cache.keys, cache.values, cache.scales, cache.value_sum, cache.length)
    )
    return LayerCache(keys, values, codes, scales, total, book, length)


def step(
    backend: Backend, cache: LayerCache, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    settings: SparseSettings, scaling: float = 0.125,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """One step, with the length advanced: output, log-sum-exp and tally, on the CPU."""
    device = cache.keys.device
    tally = torch.zeros(len(q), 2, cache.keys.shape[2], device=device)
    q, k, v = (x.to(device) for x in (q, k, v))
    out, lse = backend.decode_step(q, k, v, cache, scaling, settings, tally)
    cache.length.add_(k.shape[2])
    return out.float().cpu(), lse.cpu(), tally.cpu()
