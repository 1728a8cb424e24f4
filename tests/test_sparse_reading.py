"""Sparse reading: which blocks are skipped, what stands in for them, and that compiled stages agree."""

from __future__ import annotations

import math

import pytest
import torch
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.cpu.floats import KINDS
from adamas_kernels.cpu.reading import RANGE
from adamas_kernels.cpu.tile import form_of, is_short
from adamas_kernels.dispatch import load
from adamas_kernels.reading import (
    DEVIATIONS,
    KEY_BLOCK,
    QUERY_BLOCK,
    QUERY_STRIDE,
    BlockMeans,
    ReadSettings,
    block_shares,
    choose_blocks,
    near_block,
    prefill_sparsely,
    summarize,
)
from adamas_kernels.softmax import Softmax
from torch import Tensor

TORCH = load("torch")


def means_of(keys: Tensor, values: Tensor) -> BlockMeans:
    """Means with more room than needed, filled with NaN."""
    means = BlockMeans.empty(keys, values, keys.shape[2] // KEY_BLOCK + 2)
    for part in (means.keys, means.values, means.spreads):
        part.fill_(math.nan)
    summarize(keys, values, means, 0)
    return means


def topics(kv_heads: int, size: int, dim: int, heads: int, new: int, batch: int = 1) -> list[Tensor]:
    """Queries, keys and values of a text whose subject changes now and then, so that some blocks matter. They
    are halves of small integers, so that bfloat16 holds them and their squares exactly.
    """
    subject = torch.randn(batch, kv_heads, size // 100 + 1, dim).repeat_interleave(100, 2)[:, :, :size]
    keys = torch.randn(batch, kv_heads, size, dim) + subject
    asked = subject[:, :, torch.randint(size // 100 + 1, (new // 50 + 1,)) * 50 % size]
    queries = torch.randn(batch, heads, new, dim)
    queries += asked.repeat_interleave(50, 2)[:, :, :new].repeat_interleave(heads // kv_heads, 1)
    values = torch.randn(batch, kv_heads, size, dim)
    return [(x * 2).round().clamp(-8, 8) / 2 for x in (queries, keys, values)]


def test_means_are_those_of_whole_blocks_and_come_as_tokens_do():
    keys, values = torch.arange(2.0 * 3 * KEY_BLOCK).view(1, 2, -1, 1), torch.randn(1, 2, 3 * KEY_BLOCK, 1)
    means = BlockMeans.empty(keys, values, 3)
    means.keys.fill_(-1)
    for start, end in ((0, 70), (70, 100), (100, 3 * KEY_BLOCK - 1)):
        summarize(keys[:, :, :end], values[:, :, :end], means, start)
    assert means.keys[0, 0, :, 0].tolist() == [31.5, 95.5, -1]
    torch.testing.assert_close(means.spreads[:, :, 0], keys[:, :, :64].var(2, correction=0))
    torch.testing.assert_close(means.values[:, :, 1], values[:, :, 64:128].mean(2))


def test_a_share_is_that_of_the_mean_and_some_deviations_more():
    size, new = 4 * KEY_BLOCK + QUERY_BLOCK, QUERY_BLOCK
    queries, keys = torch.zeros(1, 1, new, 2), torch.zeros(1, 1, size, 2)
    queries[:, :, QUERY_STRIDE] = 1  # a sampled query; the others find all keys alike
    keys[:, :, KEY_BLOCK : 2 * KEY_BLOCK, 0] = 3  # all alike
    keys[:, :, 2 * KEY_BLOCK : 3 * KEY_BLOCK] = torch.tensor([[2.0, 0.5], [-2.0, -0.5]]).repeat(32, 1)
    keys[:, :, -new:] = -50  # of what is always read, only the first and the near block count
    shares = block_shares(queries, keys, means_of(keys, keys), 1.0)
    assert near_block(size - new) == 3
    assert shares.shape == (1, 1, 2)
    # Deviations of 2 and 0.5 combine to sqrt(4.25).
    weights = torch.tensor([3.0, DEVIATIONS * math.sqrt(4.25)]).exp()
    torch.testing.assert_close(shares[0, 0], weights / (weights.sum() + 2 * KEY_BLOCK))


def test_what_is_always_read():
    size, new = 7 * KEY_BLOCK + 10, QUERY_BLOCK + 10
    queries, keys = torch.randn(1, 2, new, 8), torch.randn(1, 1, size, 8)
    found = choose_blocks(queries, keys, means_of(keys, keys), 0.1, ReadSettings(0.999))
    assert found.shape == (1, 2, 2, 8)
    # Positions 320 to 447 are in blocks 5 and 6, and 448 to 457 in block 7; the block before is near.
    assert found[0].int().tolist() == [[[1, 0, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 1, 1]]] * 2


def test_left_out_blocks_enter_by_their_means():
    """If keys are alike within a block, nothing is lost, whatever is skipped."""
    size, new = 9 * KEY_BLOCK + 5, QUERY_BLOCK + 40
    queries, values = torch.randn(2, 4, new, 16), torch.randn(2, 2, size, 16)
    keys = torch.randn(2, 2, 10, 16).repeat_interleave(KEY_BLOCK, 2)[:, :, :size]
    computed = torch.zeros(2, dtype=torch.int64)
    softmax = Softmax(sinks=torch.randn(4))
    found = prefill_sparsely(
        queries, keys, values, means_of(keys, values), 0.25, ReadSettings(0.999), softmax, computed
    )
    expected = TORCH.prefill(queries, keys, values, 0.25, softmax=softmax)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # After 417 tokens: blocks 0 and 5 to 8, then 0 and 7 to 9; dense reading computes 9 and 10.
    assert computed.tolist() == [8 * (5 + 4), 8 * (9 + 10)]


def test_a_larger_tolerance_computes_less_and_errs_more():
    torch.manual_seed(0)
    queries, keys, values = topics(2, 1500, 32, heads=4, new=300)
    expected, expected_lse = TORCH.prefill(queries, keys, values, 0.3)
    errors, counts = [], []
    for tolerance in (0.0, 0.01, 0.1, 0.9):
        computed = torch.zeros(2, dtype=torch.int64)
        settings, means = ReadSettings(tolerance), means_of(keys, values)
        found, lse = prefill_sparsely(queries, keys, values, means, 0.3, settings, computed=computed)
        assert (lse <= expected_lse + 1e-5).all()  # means weigh less than the tokens they replace
        errors.append(float((found - expected).norm() / expected.norm()))
        counts.append(int(computed[0]))
    assert errors == sorted(errors)
    assert counts == sorted(counts, reverse=True)
    assert errors[0] < 1e-5 < errors[1] < errors[2] < errors[3] < 1
    assert computed[1] == counts[0] > counts[1] > counts[2] > counts[3]


def test_no_query_sees_the_future():
    queries, keys, values = topics(1, 900, 16, heads=2, new=300)
    before, _ = prefill_sparsely(queries, keys, values, means_of(keys, values), 0.25, ReadSettings(0.05))
    keys[:, :, 730:], values[:, :, 730:] = 5, -5
    after, _ = prefill_sparsely(queries, keys, values, means_of(keys, values), 0.25, ReadSettings(0.05))
    assert torch.equal(before[:, :, :QUERY_BLOCK], after[:, :, :QUERY_BLOCK])  # queries 600 to 727
    assert not torch.equal(before[:, :, 130:], after[:, :, 130:])


def test_what_it_does_not_serve():
    queries, keys, values = topics(1, 200, 16, heads=1, new=20)
    means = means_of(keys, values)
    for backend in (TORCH, CpuBackend()):
        with pytest.raises(ValueError, match="window"):
            backend.prefill_sparsely(queries, keys, values, means, 0.25, ReadSettings(), Softmax(100))
    for tolerance in (-0.1, 1):
        with pytest.raises(ValueError, match="tolerance"):
            ReadSettings(tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "new", "size", "cap"),
    [
        (14, 2, 64, 300, 1500, 0.0),  # as in the default model
        (3, 3, 128, 130, 130, 4.0),  # nothing to skip, learned sinks
        (4, 1, 80, 5, 3000, 4.0),  # few queries
        (2, 1, 96, QUERY_BLOCK, 10 * KEY_BLOCK, 0.0),  # two sequences
        (2, 2, 64, QUERY_BLOCK + 1, RANGE + 65, 0.0),  # more keys than are repacked at a time
    ],
)
def test_compiled_stages_choose_and_attend_as_specified(heads, kv_heads, dim, new, size, cap, dtype):
    torch.manual_seed(size)
    batch = 1 + (size < 1000)
    queries, keys, values = (x.to(dtype) for x in topics(kv_heads, size, dim, heads, new, batch))
    softmax = Softmax(softcap=cap, sinks=torch.randn(heads) if heads == 3 else None)
    means, scaling, cpu = means_of(keys, values), dim**-0.5, CpuBackend()
    for tolerance in (0.999, 0.02, 0.0):
        arguments = queries, keys, values, means, scaling, ReadSettings(tolerance), softmax
        expected, found = (torch.zeros(2, dtype=torch.int64) for _ in range(2))
        out, lse = TORCH.prefill_sparsely(*arguments, expected)
        compiled, compiled_lse = cpu.prefill_sparsely(*arguments, found)
        assert found.tolist() == expected.tolist()
        rounds = is_short(form_of(KINDS[dtype], KINDS[dtype]))
        torch.testing.assert_close(compiled_lse, lse, rtol=1e-4, atol=1e-3 if rounds else 1e-4)
        assert (compiled.float() - out.float()).norm() <= 4e-3 * out.float().norm()


def test_compiled_stages_read_rows_in_16_bits():
    """Keys and values in float16 with queries in float32, whose means are float32 too."""
    queries, keys, values = topics(2, 1500, 64, 14, 300)
    keys, values = keys.half(), values.half()
    means = BlockMeans.empty(keys, values, 1500 // KEY_BLOCK, torch.float32)
    summarize(keys, values, means, 0)
    arguments = queries, keys, values, means, 0.125, ReadSettings(0.02), Softmax()
    expected, found = (torch.zeros(2, dtype=torch.int64) for _ in range(2))
    out, lse = TORCH.prefill_sparsely(*arguments, expected)
    compiled, compiled_lse = CpuBackend().prefill_sparsely(*arguments, found)
    assert found.tolist() == expected.tolist()
    assert compiled.dtype == out.dtype == torch.float32
    assert (compiled - out).norm() <= 6e-4 * out.norm()
    torch.testing.assert_close(compiled_lse, lse, rtol=1e-4, atol=1e-3)
