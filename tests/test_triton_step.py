"""The Triton kernels against the specification: in the interpreter here, natively with `-m gpu` where there
is a GPU.
"""

from __future__ import annotations

import pytest
import torch
from adamas_kernels import reference as ref
from adamas_kernels.encode import encode_keys
from adamas_kernels.ops import LayerCache, SparseSettings, decode_attention
from adamas_kernels.step import Scratch, decode_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_cache(batch, kv_heads, dim, dim_v, length, capacity, dtype, settings, make=torch.randn):
    """A cache of `length` tokens whose unused rows hold NaN and infinities, and whose codes are the
    reference's.
    """
    keys = torch.full((batch, kv_heads, capacity, dim), torch.inf, dtype=dtype)
    values = torch.full((batch, kv_heads, capacity, dim_v), torch.nan, dtype=dtype)
    keys[:, :, :length] = make(batch, kv_heads, length, dim).to(dtype)
    values[:, :, :length] = torch.randn(batch, kv_heads, length, dim_v).to(dtype)
    words = ref.padded_dim(dim) // 16
    codes = torch.randint(-(2**31), 2**31 - 1, (batch, kv_heads, words, capacity), dtype=torch.int32)
    scales = torch.full((batch, kv_heads, capacity), torch.nan, dtype=torch.float16)
    book = ref.fit_codebook(keys[:, :, :length], settings.edge, settings.centred)
    codes = codes.transpose(-1, -2)
    codes[:, :, :length], scales[:, :, :length] = ref.encode_keys(keys[:, :, :length], book)
    total = values[:, :, :length].float().sum(2)
    return LayerCache(keys, values, codes, scales, total, book, torch.tensor([length], dtype=torch.int32))


def to(cache, device):
    book = ref.Codebook(cache.codebook.mean.to(device), cache.codebook.edge.to(device))
    words = cache.codes.transpose(-1, -2).contiguous().to(device).transpose(-1, -2)
    rest = (
        cache.scales.to(device),
        cache.value_sum.clone().to(device),
        book,
        cache.length.clone().to(device),
    )
    return LayerCache(cache.keys.clone().to(device), cache.values.clone().to(device), words, *rest)


def run_both(cache, new, heads, settings, scaling=0.125, steps=1, threshold=-1e30, device=DEVICE):
    """Outputs of the reference (in float32 from the same cache) and of the kernels, for some steps."""
    batch, kv_heads, _, dim = cache.keys.shape
    on_device = to(cache, device)
    kept = torch.full((batch, heads), threshold, device=device)
    scratch = None
    results = []
    for _ in range(steps):
        q = torch.randn(batch, heads, new, dim, dtype=cache.keys.dtype)
        k = torch.randn(batch, kv_heads, new, dim, dtype=cache.keys.dtype)
        v = torch.randn(batch, kv_heads, new, cache.values.shape[3], dtype=cache.keys.dtype)
        at = int(cache.length)
        cache.keys[:, :, at : at + new], cache.values[:, :, at : at + new] = k, v
        codes, scales = ref.encode_keys(k, cache.codebook)
        cache.codes[:, :, at : at + new], cache.scales[:, :, at : at + new] = codes, scales
        cache.value_sum.add_(v.float().sum(2))
        cache.length.add_(new)
        expected = decode_attention(q.float(), cache.view(), scaling, settings)
        q_dev = q.to(device)
        if scratch is None:
            scratch = Scratch.allocate(q_dev, on_device, settings.budget)
            for buffer in (
                scratch.rank,
                scratch.mass,
                scratch.ranks,
                scratch.parts,
                scratch.lse,
                scratch.facts,
            ):
                buffer.fill_(torch.nan)
            scratch.chosen.fill_(-(2**30))
        out, _ = decode_step(q_dev, k.to(device), v.to(device), on_device, kept, scratch, scaling, settings)
        on_device.length.add_(new)
        results.append((expected, out.float().cpu()))
        size = int(cache.length)
        assert torch.equal(on_device.codes.cpu()[:, :, :size], cache.codes[:, :, :size])
        assert torch.equal(on_device.scales.cpu()[:, :, :size], cache.scales[:, :, :size])
    return results


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 64), (6, 2, 64), (3, 1, 80), (4, 1, 128)])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("length", [1, 15, 16, 40, 300])
def test_a_step_equals_the_reference(scorer, heads, kv_heads, dim, new, length):
    torch.manual_seed(length)
    settings = SparseSettings(budget=16, scorer=scorer)
    cache = make_cache(1, kv_heads, dim, dim, length, 700, torch.float32, settings)
    for expected, out in run_both(cache, new, heads, settings):
        torch.testing.assert_close(out, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_a_chunk_of_keys_gets_the_codes_of_the_reference(dim, count):
    torch.manual_seed(count)
    keys = (torch.randn(2, 3, count, dim) * torch.linspace(0.1, 9, dim)).to(torch.bfloat16)
    book = ref.fit_codebook(keys)
    codes, scales = ref.encode_keys(keys, book)
    found = torch.full((2, 3, codes.shape[-1], count + 7), -1, dtype=torch.int32).transpose(-1, -2).to(DEVICE)
    lengths = torch.full((2, 3, count + 7), torch.nan, dtype=torch.float16, device=DEVICE)
    book = ref.Codebook(book.mean.to(DEVICE), book.edge.to(DEVICE))
    encode_keys(keys.to(DEVICE), book, found[:, :, 3 : count + 3], lengths[:, :, 3 : count + 3])
    assert torch.equal(found[:, :, 3 : count + 3].cpu(), codes)
    assert torch.equal(lengths[:, :, 3 : count + 3].cpu(), scales)
    assert (found[:, :, :3] == -1).all()
    assert lengths[:, :, count + 3 :].isnan().all()


@pytest.mark.parametrize("threshold", [-1e30, 1e30, 0.0])
def test_a_wrong_prediction_changes_nothing(threshold):
    """No candidates, too many, and what the next steps learn from it."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=16)
    cache = make_cache(1, 2, 64, 64, 900, 1000, torch.float32, settings)
    for expected, out in run_both(cache, 1, 4, settings, steps=3, threshold=threshold):
        torch.testing.assert_close(out, expected, rtol=2e-4, atol=2e-5)
