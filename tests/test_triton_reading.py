"""Sparse reading's Triton kernels against its specification, in the interpreter or on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from adamas_kernels import reading as ref
from adamas_kernels.contract import Facts
from adamas_kernels.dispatch import serving
from adamas_kernels.reading import KEY_BLOCK, QUERY_BLOCK, QUERY_STRIDE, BlockMeans, ReadSettings
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.triton import reading, sparse_prefill
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.reading import WORD

from adamas_cli.models.device import has_cuda_gpu
from adamas_cli.planning import needs

DEVICE = torch.device("cuda" if has_cuda_gpu() else "cpu")
SETTINGS = ReadSettings(0.01)
CLOSE = 0.03  # of a share: squares are rounded to the keys' number format, and shares are kept in bfloat16
CAPPED = Softmax(softcap=20.0)
# batch, heads, KV heads, head_dim, new tokens, tokens before them, softmax
CASES = {
    "a group": (1, 4, 2, 64, 200, 700, PLAIN),
    "one head, an odd dimension": (1, 1, 1, 80, 130, 1000, PLAIN),
    "two sequences, soft-capped": (2, 2, 1, 96, 9, 330, CAPPED),
    "wide heads": (1, 2, 1, 256, 70, 300, PLAIN),
    "nothing before": (1, 1, 1, 64, 150, 0, PLAIN),
}


def chunk(batch, heads, kv_heads, dim, new, past, dtype=torch.float16):
    """Queries, keys and values of a text whose subject changes, and their means; tokens are the outermost
    dimension, and unfilled means are NaN.
    """
    size = new + past
    subject = torch.randn(batch, size // 50 + 1, kv_heads, dim, device=DEVICE)
    keys = torch.randn(batch, size, kv_heads, dim, device=DEVICE) + subject.repeat_interleave(50, 1)[:, :size]
    asked = subject[:, torch.randint(size // 50 + 1, (new,), device=DEVICE).sort().values]
    queries = torch.randn(batch, new, heads, dim, device=DEVICE)
    queries += asked.repeat_interleave(heads // kv_heads, 2)
    values = torch.randn(batch, size, kv_heads, dim, device=DEVICE)
    queries, keys, values = (x.to(dtype).transpose(1, 2) for x in (queries, keys, values))
    means = nothing_like(keys, values)
    ref.summarize(keys, values, means, 0)
    return queries, keys, values, means


def nothing_like(keys, values):
    """Room for means, and for more of them, full of NaN."""
    means = BlockMeans.empty(keys, values, keys.shape[2] // KEY_BLOCK + 3)
    for part in vars(means).values():
        part.fill_(math.nan)
    return means


def blocks_before(new, past):
    """The number of key blocks that lie wholly before each tile of queries: [R, 1]."""
    return torch.arange(past, past + new, QUERY_BLOCK, device=DEVICE).unsqueeze(1) // KEY_BLOCK


def as_lists(chosen, new, past):
    """Chosen blocks, bool [B, H, R, blocks], as `choose_kernel` writes them."""
    before, spare = blocks_before(new, past), -chosen.shape[-1] % WORD
    chosen = torch.nn.functional.pad(chosen, (0, spare))
    block = torch.arange(chosen.shape[-1], device=DEVICE)
    bits = (chosen | (block >= before)).unflatten(-1, (-1, WORD)).long() << torch.arange(WORD, device=DEVICE)
    listed = chosen & (block < before)
    lists = listed.int().argsort(dim=-1, descending=True, stable=True)
    return bits.sum(-1), lists.int(), listed.sum(-1).int()


def from_bits(bits):
    """Unpacks the bits that `choose_kernel` wrote: bool [B, H, R, blocks]."""
    return (bits.unsqueeze(-1) >> torch.arange(WORD, device=DEVICE) & 1).bool().flatten(-2)


def in_float64(queries, keys, values, means, chosen, scaling, softmax):
    """Attention to chosen blocks, and to the means of the others, by definition."""
    group, new, size = queries.shape[1] // keys.shape[1], queries.shape[2], keys.shape[2]
    past, whole = size - new, size // KEY_BLOCK
    keys, values, mean_keys, mean_values = (
        x.double().repeat_interleave(group, 1)
        for x in (keys, values, means.keys[:, :, :whole], means.values[:, :, :whole])
    )
    tile = torch.arange(new, device=DEVICE) // QUERY_BLOCK
    read = chosen[:, :, tile]
    token = torch.arange(size, device=DEVICE)
    hidden = ~read[..., token // KEY_BLOCK] | (token > past + torch.arange(new, device=DEVICE).unsqueeze(1))
    scores = softmax.capped(queries.double() @ keys.mT * scaling).masked_fill(hidden, -math.inf)
    left = softmax.capped(queries.double() @ mean_keys.mT * scaling) + math.log(KEY_BLOCK)
    stands_in = torch.arange(whole, device=DEVICE) < blocks_before(new, past)[tile]
    left = left.masked_fill(read[..., :whole] | ~stands_in, -math.inf)
    joint = torch.cat([scores, left], -1)
    return joint.softmax(-1) @ torch.cat([values, mean_values], 2), joint.logsumexp(-1)


def check(case, dtype=torch.float16):
    """Runs one case through all kernels."""
    batch, heads, kv_heads, dim, new, past, softmax = case
    queries, keys, values, means = chunk(batch, heads, kv_heads, dim, new, past, dtype)
    scaling = dim**-0.5
    bits, lists, counts = reading.choose_blocks(queries, keys, means, scaling, SETTINGS, softmax)
    fewer, more = (
        ref.choose_blocks(
            queries, keys, means, scaling, replace(SETTINGS, tolerance=SETTINGS.tolerance * factor), softmax
        )
        for factor in (1 + CLOSE, 1 - CLOSE)
    )
    earlier = torch.arange(fewer.shape[-1], device=DEVICE) < blocks_before(new, past)
    chosen = torch.where(earlier, from_bits(bits)[..., : fewer.shape[-1]], fewer)
    assert not (fewer & ~chosen).any()
    assert not (chosen & ~more).any()
    expected = as_lists(chosen, new, past)
    assert torch.equal(bits, expected[0])
    assert torch.equal(counts, expected[2])
    listed = torch.arange(lists.shape[-1], device=DEVICE) < counts.unsqueeze(-1)
    assert torch.equal(lists[listed], expected[1][listed])
    truth, truth_lse = in_float64(queries, keys, values, means, chosen, scaling, softmax)
    rounding = (truth.to(dtype).double() - truth).norm()
    for hopper in (False, True) if DEVICE.type == "cpu" or sparse_prefill.on_hopper(DEVICE) else (False,):
        out, lse = sparse_prefill.attend_to_blocks(
            queries, keys, values, means, (bits, lists, counts), scaling, softmax, hopper
        )
        assert (out.double() - truth).norm() <= 2 * rounding  # weights are rounded too
        torch.testing.assert_close(lse.double(), truth_lse, rtol=1e-5, atol=1e-4)
    return chosen


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernels_choose_and_attend_as_specified(case):
    torch.manual_seed(0)
    check(case)


@pytest.mark.parametrize("dim", [64, 80])
def test_means_are_written_where_blocks_became_whole(dim):
    torch.manual_seed(0)
    _, keys, values, means = chunk(2, 2, 2, dim, 100, 200)
    found = nothing_like(keys, values)
    for start, end in ((0, 130), (130, 300)):
        TritonBackend().summarize(keys[:, :, :end], values[:, :, :end], found, start)
    for ours, theirs in zip(vars(found).values(), vars(means).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, equal_nan=True)


def test_a_chunk_with_learned_sinks_is_read_as_by_torch():
    torch.manual_seed(0)
    queries, keys, values, means = chunk(1, 2, 1, 64, 140, 500)
    softmax = Softmax(sinks=torch.tensor([3.0, -1.0], device=DEVICE))
    totals = [torch.tensor([5, 7], device=DEVICE) for _ in range(2)]
    found, expected = (
        read(queries, keys, values, means, 0.125, SETTINGS, softmax, total)
        for read, total in zip((TritonBackend().prefill_sparsely, ref.prefill_sparsely), totals, strict=True)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=4e-3, atol=2e-3)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(*totals)
    with pytest.raises(ValueError, match="window"):
        TritonBackend().prefill_sparsely(queries, keys, values, means, 0.125, SETTINGS, Softmax(window=9))


def test_tiles_with_most_blocks_come_first_and_others_as_they_lie():
    counts = torch.tensor([[[100, 0, 30], [40, 105, 29], [400, 3, 30]]], dtype=torch.int32, device=DEVICE)
    assert sparse_prefill.heaviest_first(counts).tolist() == [6, 0, 4, 3, 2, 5, 8, 7, 1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "new", "past", "softmax"),
    [
        (32, 8, 128, 2048, 6100, PLAIN),
        (14, 2, 64, 1000, 9000, PLAIN),
        (8, 4, 256, 700, 3000, CAPPED),
        (6, 2, 80, 1, 5000, PLAIN),
        (12, 2, 128, 4096, 0, PLAIN),
    ],
)
def test_long_chunks_on_a_gpu(dtype, heads, kv_heads, dim, new, past, softmax):
    torch.manual_seed(0)
    chosen = check((1, heads, kv_heads, dim, new, past, softmax), dtype)
    if past > QUERY_BLOCK:
        earlier = torch.arange(chosen.shape[-1], device=DEVICE) < blocks_before(new, past)
        assert 0.02 < chosen[earlier.expand_as(chosen)].float().mean() < 0.9


@pytest.mark.gpu
def test_a_gpu_reads_sparsely_by_these_kernels():
    queries, keys, values, _ = chunk(1, 4, 2, 64, 130, 0, torch.bfloat16)
    assert serving("prefill_sparsely", Facts.of(queries, keys, values)).name == "triton"


def test_heads_in_several_launches_choose_the_same(monkeypatch):
    torch.manual_seed(0)
    queries, keys, _, means = chunk(1, 4, 2, 64, 300, 500)
    whole = reading.choose_blocks(queries, keys, means, 0.125, SETTINGS, PLAIN)
    launches = []
    monkeypatch.setattr(reading, "heads_at_once", lambda heads, *_: launches.append(heads) or 3)
    apart = reading.choose_blocks(queries, keys, means, 0.125, SETTINGS, PLAIN)
    assert launches == [4]
    listed = torch.arange(whole[1].shape[-1], device=DEVICE) < whole[2].unsqueeze(-1)
    assert torch.equal(whole[0], apart[0])
    assert torch.equal(whole[2], apart[2])
    assert torch.equal(whole[1][listed], apart[1][listed])


def test_a_launch_fills_a_gpu_and_keeps_few_shares():
    for tokens in (2**17, 2**20):
        shares = 8192 // QUERY_STRIDE * tokens // KEY_BLOCK
        heads = reading.heads_at_once(32, 8, shares)
        assert heads * 8 >= reading.LEAST_PROGRAMS
        assert heads * shares <= max(
            reading.SHARES, reading.LEAST_PROGRAMS * reading.MOST_QUERIES * tokens // KEY_BLOCK
        )
    assert reading.heads_at_once(32, 8, 2**20) == 32


def test_plans_count_what_a_choice_keeps():
    assert (needs.KEY_BLOCK, needs.QUERY_BLOCK, needs.QUERY_STRIDE) == (KEY_BLOCK, QUERY_BLOCK, QUERY_STRIDE)
    assert needs.SHARES == reading.SHARES
    assert needs.LEAST_QUERIES == reading.LEAST_PROGRAMS * reading.MOST_QUERIES
