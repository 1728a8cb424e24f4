"""Chunked dense attention against attention with an explicit mask, in float64."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.contract import Facts
from adamas_kernels.dispatch import serving
from adamas_kernels.torch import prefill


def chunk_attention(queries, keys, values, scaling):
    """Runs the prefill that serves this device, and checks its log-sum-exp."""
    out, lse = serving("prefill", Facts.of(queries, keys, values)).prefill(queries, keys, values, scaling)
    group = queries.shape[1] // keys.shape[1]
    scores = queries.double() @ keys.double().repeat_interleave(group, 1).transpose(-1, -2) * scaling
    new, size = scores.shape[-2:]
    seen = torch.ones(new, size, dtype=torch.bool, device=scores.device).tril(size - new)
    expected = scores.masked_fill(~seen, -torch.inf).logsumexp(-1)
    tolerance = 1e-5 if queries.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(lse.double(), expected, rtol=tolerance, atol=10 * tolerance)
    return out


def masked(q, k, v, scaling):
    new, size = q.shape[2], k.shape[2]
    mask = torch.ones(new, size, dtype=torch.bool).tril(size - new)
    return torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, scale=scaling, enable_gqa=True
    )


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (9, 3, 64), (14, 2, 80), (4, 1, 256)])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (1, 77), (5, 0), (5, 1), (64, 300), (33, 1000)])
@pytest.mark.parametrize("block", [1 << 24, 1])
def test_equals_attention_with_a_mask(heads, kv_heads, dim, new, past, block, monkeypatch):
    monkeypatch.setattr(prefill, "BLOCK", block)
    torch.manual_seed(0)
    q = torch.randn(2, heads, new, dim)
    k, v = torch.randn(2, kv_heads, new + past, dim), torch.randn(2, kv_heads, new + past, dim)
    out = chunk_attention(q, k, v, 0.2)
    torch.testing.assert_close(out.double(), masked(q, k, v, 0.2), rtol=1e-4, atol=1e-5)


def test_low_precision_costs_one_more_rounding_than_torch_itself():
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, n, 64, dtype=torch.bfloat16) for heads, n in ((8, 40), (2, 900), (2, 900))
    )
    truth = masked(q, k, v, 0.125)
    mask = torch.ones(40, 900, dtype=torch.bool).tril(860)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=0.125, enable_gqa=True
    )
    ours = chunk_attention(q, k, v, 0.125)
    # The fused kernel rounds each part to bfloat16, and the merged result is rounded again: sqrt(2) times one
    # rounding.
    assert (ours.double() - truth).norm() <= 1.42 * (plain.double() - truth).norm()


def test_reads_a_cache_that_is_longer_than_what_is_filled():
    torch.manual_seed(0)
    q = torch.randn(1, 4, 6, 64)
    buffers = torch.full((2, 1, 2, 64, 64), torch.nan)
    buffers[:, :, :, :20] = torch.randn(2, 1, 2, 20, 64)
    k, v = buffers[:, :, :, :20]
    torch.testing.assert_close(
        chunk_attention(q, k, v, 0.1).double(), masked(q, k, v, 0.1), rtol=1e-4, atol=1e-5
    )


def test_float32_without_a_fused_kernel():
    q, k, v = torch.randn(1, 4, 7, 32), torch.randn(1, 4, 7, 32), torch.randn(1, 4, 7, 32)
    out, lse = prefill._by_definition(q, k, v, 0.3, is_causal=True)
    fused, fused_lse = prefill.attention_with_lse(q, k, v, 0.3, is_causal=True)
    torch.testing.assert_close(out, fused)
    torch.testing.assert_close(lse, fused_lse)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
@pytest.mark.parametrize(("new", "past"), [(1, 77), (64, 0), (33, 1000), (300, 5000)])
def test_the_kernels_of_a_gpu(dtype, tolerance, new, past):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, n, 64).to("cuda", dtype)
        for heads, n in ((14, new), (2, new + past), (2, new + past))
    )
    out = chunk_attention(q, k, v, 0.2)
    truth = masked(*(x.cpu() for x in (q, k, v)), 0.2)
    torch.testing.assert_close(out.cpu().double(), truth, rtol=tolerance, atol=tolerance)
