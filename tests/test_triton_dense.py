"""Full attention of one token, products of one row and joined parts in Triton: in the interpreter here,
natively with `-m gpu` on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.contract import DenseCache
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.linear import LARGEST_BLOCK
from adamas_kernels.triton.prefill import CUDNN_BLOCK, blocks_of, merge_into

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPARE = 70  # rows of a cache that must not be read

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.fixture(autouse=True)
def _on_the_device():
    torch.manual_seed(0)
    with DEVICE:
        yield


def attention(queries, keys, values, scaling):
    """In float64, with the log-sum-exp."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = queries.double() @ keys.transpose(-1, -2) * scaling
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def filled(batch, kv_heads, length, dim, dtype=torch.float32):
    """A buffer of `length` rows, and NaN after them."""
    rows = torch.randn(batch, kv_heads, length + SPARE, dim).to(dtype)
    rows[:, :, length:] = torch.nan
    return rows


def check_step(heads, kv_heads, dim, dim_v, length, dtype, tolerance, batch=2):
    keys, values = filled(batch, kv_heads, length, dim, dtype), filled(batch, kv_heads, length, dim_v, dtype)
    q, k, v = (
        torch.randn(batch, count, 1, size).to(dtype)
        for count, size in ((heads, dim), (kv_heads, dim), (kv_heads, dim_v))
    )
    value_sum = torch.randn(batch, kv_heads, dim_v)
    expected_sum = value_sum + v[:, :, 0].float()
    cache = DenseCache(keys, values, value_sum, torch.full((batch,), length, dtype=torch.int32))
    out, lse = TritonBackend().dense_step(q, k, v, cache, 0.2)
    seen = slice(0, length + 1)
    assert torch.equal(keys[:, :, length : length + 1], k)
    assert torch.equal(values[:, :, length : length + 1], v)
    assert torch.equal(value_sum, expected_sum)
    assert keys[:, :, length + 1 :].isnan().all()
    expected, expected_lse = attention(q, keys[:, :, seen], values[:, :, seen], 0.2)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dim_v"), [(4, 2, 64, 64), (9, 3, 64, 64), (14, 2, 80, 80), (4, 4, 32, 48)]
)
@pytest.mark.parametrize("length", [0, 1, 127, 300])
def test_one_token_attends_to_all(heads, kv_heads, dim, dim_v, length):
    check_step(heads, kv_heads, dim, dim_v, length, torch.float32, 1e-4)


def test_one_token_attends_to_all_in_half_precision():
    check_step(8, 2, 64, 64, 200, torch.float16, 4e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(32, 8, 128), (32, 32, 128), (14, 2, 64), (8, 1, 256)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_token_attends_to_a_long_context(heads, kv_heads, dim, dtype):
    tolerance = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    check_step(heads, kv_heads, dim, dim, 20_001, dtype, tolerance, batch=1)


@pytest.mark.parametrize("inputs", [64, 100, LARGEST_BLOCK + 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [True, False])
def test_a_row_times_a_matrix(inputs, dtype, biased):
    x = torch.randn(1, 1, inputs).to(dtype)
    weight = torch.randn(37, inputs + 4).to(dtype)[:, :inputs]  # rows are not contiguous with each other
    bias = torch.randn(37).to(dtype) if biased else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if biased else None)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-3
    found = TritonBackend().linear(x, weight, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=inputs * tolerance / 10)


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_parts_of_a_softmax_are_joined(shift):
    """Also if one part outweighs the other beyond the range of an exponential."""
    q = torch.randn(2, 6, 21, 48)
    keys, values = torch.randn(2, 3, 90, 48), torch.randn(2, 3, 90, 48)
    keys[:, :, :50] += shift * q[:, ::2].mean(2, keepdim=True)
    whole, whole_lse = attention(q, keys, values, 1.0)
    (out, lse), (other, other_lse) = (
        (part.float() for part in attention(q, keys[:, :, part], values[:, :, part], 1.0))
        for part in (slice(0, 50), slice(50, 90))
    )
    merge_into(out, lse, other, other_lse)
    torch.testing.assert_close(out.double(), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse.double(), whole_lse, rtol=1e-5, atol=1e-4)


def test_earlier_tokens_are_cut_into_few_sizes():
    for past in (0, 1, CUDNN_BLOCK - 1, CUDNN_BLOCK, 7 * CUDNN_BLOCK + 5, 61 * CUDNN_BLOCK):
        blocks = blocks_of(past)
        starts, ends = [0, *(end for _, end in blocks)], [end for _, end in blocks]
        assert [start for start, _ in blocks] == starts[: len(blocks)]
        assert (ends[-1] if ends else 0) == past
    sizes = {
        end - start for past in range(0, 64 * CUDNN_BLOCK, CUDNN_BLOCK) for start, end in blocks_of(past)
    }
    assert len(sizes) == 6


@pytest.mark.parametrize(
    ("heads", "rank", "rotary", "length", "dtype", "tolerance"),
    [
        (4, 32, 16, 100, torch.float32, 1e-5),
        (20, 24, 8, 1, torch.float32, 1e-5),  # more heads than a program has rows, and odd widths
        (16, 512, 64, 70, torch.float16, 1e-2),
        (3, 32, 16, 0, torch.float32, 1e-5),
        # The interpreter cannot multiply bfloat16.
        pytest.param(128, 512, 64, 3000, torch.bfloat16, 2e-2, marks=pytest.mark.gpu),
    ],
)
def test_a_token_attends_to_latents(heads, rank, rotary, length, dtype, tolerance):
    """Keys whose beginnings are the values are read once."""
    kept = filled(2, 1, length, rank + rotary, dtype)
    q, new = (torch.randn(2, count, 1, rank + rotary).to(dtype) for count in (heads, 1))
    cache = DenseCache(
        kept, kept[..., :rank], torch.randn(2, 1, rank), torch.full((2,), length, dtype=torch.int32)
    )
    expected_sum = cache.value_sum + new[:, :, 0, :rank].float()
    out, lse = TritonBackend().dense_step(q, new, new[..., :rank], cache, 0.2)
    seen = kept[:, :, : length + 1]
    assert torch.equal(seen[:, :, length:], new)
    assert torch.equal(cache.value_sum, expected_sum)
    assert kept[:, :, length + 1 :].isnan().all()
    expected, expected_lse = attention(q, seen, seen[..., :rank], 0.2)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)
