"""The Triton kernels against the specification: in the interpreter here, natively with `-m gpu` where there
is a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from adamas_kernels import reference as ref
from adamas_kernels.ops import SparseSettings
from adamas_kernels.select import bisect_candidates, clear_marks
from adamas_kernels.step import ESTIMATE_BLOCK, RANK_BLOCK, TritonBackend, has_ptx, room_and_target
from layer_caches import (
    ODD_KEYS,
    check_steps,
    check_strided_inputs,
    encoded_in_the_middle,
    make_cache,
    some_codebook,
    spread_out,
    zeros,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAR_OUTSIDE = -(2**30)
NONE_PASSES = 1e30  # as a prediction
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


class Poisoned(TritonBackend):
    """Starts every step from scratch buffers of NaN and of positions far outside."""

    def scratch(self, *shape):
        scratch = super().scratch(*shape)
        for buffer in vars(scratch).values():
            buffer.fill_(torch.nan if buffer.is_floating_point() else FAR_OUTSIDE)
        return scratch


def check(cache, heads, new, settings, **options):
    return check_steps(Poisoned(), cache, heads, new, settings, device=DEVICE, **options)


@pytest.fixture(autouse=True)
def _mended_interpreter(monkeypatch):
    """Triton's interpreter cuts off the bits that bfloat16 lacks, where every GPU rounds, and takes the
    exclusive ors of a sort one by one, which is minutes for a large budget.
    """
    if DEVICE == "cuda":
        return
    from triton.runtime import interpreter

    convert, reduce = interpreter._convert_float, interpreter.ReduceOps.generic_reduce

    def convert_float(x, source, target, rounding):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.array(x)).bfloat16().view(torch.int16).numpy()
        return convert(x, source, target, rounding)

    def generic_reduce(self, inputs):
        if self.combine_fn is not tl.standard._xor_combine:
            return reduce(self, inputs)
        sums = (np.bitwise_xor.reduce(x.handle.data, self.axis, keepdims=self.keep_dims) for x in inputs)
        return [self.to_tensor(found, x.dtype) for found, x in zip(sums, inputs, strict=True)]

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", generic_reduce)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dim_v", "dtype", "scorer", "new", "batch"),
    [
        (1, 1, 64, 64, BRAIN, "dot", 1, 1),
        (2, 2, 64, 64, HALF, "manhattan", 3, 1),
        (7, 1, 64, 64, BRAIN, "dot", 1, 1),
        (7, 1, 64, 72, FULL, "manhattan", 1, 1),
        (2, 1, 80, 80, HALF, "dot", 3, 1),
        (3, 1, 80, 80, FULL, "manhattan", 1, 1),
        (2, 1, 80, 80, BRAIN, "manhattan", 1, 4),
        (3, 1, 96, 48, BRAIN, "dot", 1, 1),
        (6, 2, 96, 96, HALF, "manhattan", 1, 1),
        (3, 3, 96, 96, FULL, "dot", 1, 1),
        (4, 1, 128, 128, HALF, "dot", 1, 1),
        (8, 2, 128, 128, FULL, "manhattan", 1, 1),
        (4, 1, 128, 64, BRAIN, "manhattan", 3, 1),
        (8, 1, 128, 128, FULL, "dot", 1, 1),
        (6, 1, 256, 256, HALF, "dot", 1, 1),
        (6, 1, 256, 64, FULL, "dot", 1, 1),
        (2, 1, 256, 256, BRAIN, "manhattan", 1, 1),
        (4, 2, 16, 24, HALF, "dot", 1, 4),
    ],
)
def test_heads_and_dimensions(heads, kv_heads, dim, dim_v, dtype, scorer, new, batch):
    torch.manual_seed(dim + heads)
    settings = SparseSettings(budget=16, scorer=scorer)
    check(make_cache(batch, kv_heads, dim, 120, 150, settings, dtype, dim_v), heads, new, settings)


def around(*edges):
    return sorted({edge + step for edge in edges for step in (-1, 0, 1)})


BUDGET, FORCED, RECENTS = 16, 8, 4
ROOM = room_and_target(BUDGET)[0]
# What lies before the recents is ranked, in blocks that three programs share in the interpreter.
BLOCK_EDGES = [RECENTS + blocks * ESTIMATE_BLOCK for blocks in (1, 3, 6)]


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize(
    "size",
    [
        *(1, 2, 3, 8, ESTIMATE_BLOCK),
        *around(BUDGET, *BLOCK_EDGES, ROOM + FORCED, RANK_BLOCK + RECENTS),
    ],
)
def test_contexts_around_every_edge(scorer, size):
    torch.manual_seed(size)
    settings = SparseSettings(budget=BUDGET, scorer=scorer, recents=RECENTS)
    check(make_cache(1, 1, 32, size - 1, 1100, settings), 1, 1, settings)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_a_context_of_many_blocks(scorer):
    """Also in the steps after the first, which have a prediction and a few candidates."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=BUDGET, scorer=scorer)
    kept = check(make_cache(1, 1, 32, 4999, 5100, settings), 1, 1, settings, steps=2)
    assert (kept.prediction > -1e4).all()


@pytest.mark.parametrize("capacity", [1, 2, 3, 17, 63, 64, 65, 100, 127, 129, 200])
def test_a_last_block_that_does_not_fit_is_moved_back(capacity):
    settings = SparseSettings(budget=8, sinks=1, recents=1)
    for size in {capacity, max(1, capacity - 1)}:
        torch.manual_seed(size)
        check(make_cache(1, 1, 32, size - 1, capacity, settings), 1, 1, settings)


@pytest.mark.parametrize(("scorer", "size"), [("dot", 16), ("manhattan", 24), ("dot", 128)])
def test_sixteen_new_tokens(scorer, size):
    """More than the recents, so that some of them are ranked by codes that this step writes."""
    torch.manual_seed(size)
    settings = SparseSettings(budget=16, scorer=scorer)
    check(make_cache(1, 1, 32, size - 16, 128, settings, HALF), 2, 16, settings)


@pytest.mark.parametrize(
    ("budget", "scorer", "size", "prediction"),
    [
        (1, "dot", 90, None),
        (2, "manhattan", 90, None),
        (100, "dot", 99, None),
        (100, "manhattan", 100, None),
        (100, "dot", 101, None),
        (100, "dot", 700, None),
        (128, "manhattan", 200, None),
        (128, "dot", 200, NONE_PASSES),
        (300, "dot", 299, None),
        (300, "dot", 301, None),
        (300, "manhattan", 700, None),
        (300, "dot", 700, NONE_PASSES),
        (1024, "dot", 90, None),
        (1024, "dot", 1100, None),
        (1024, "manhattan", 1100, NONE_PASSES),
        (4096, "dot", 300, None),
    ],
)
def test_budgets(budget, scorer, size, prediction):
    torch.manual_seed(budget + size)
    settings = SparseSettings(budget=budget, scorer=scorer)
    check(make_cache(1, 1, 64, size - 1, 1152, settings), 1, 1, settings, prediction=prediction)


@pytest.mark.parametrize("dtype", [FULL, BRAIN])
def test_the_parts_of_a_large_budget_are_merged_for_every_head_and_token(dtype):
    torch.manual_seed(0)
    settings = SparseSettings(budget=300)
    check(make_cache(1, 2, 64, 340, 400, settings, dtype, dim_v=48), 2, 3, settings)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize(
    "options", [{"edge": 10.0}, {"edge": 1.5, "compensate": False}, {"compensate": False}]
)
def test_fixed_edges_and_no_compensation(scorer, options):
    torch.manual_seed(0)
    settings = SparseSettings(budget=16, scorer=scorer, **options)
    cache = make_cache(1, 1, 64, 300, 400, settings, make=lambda *shape: 6 * torch.randn(shape))
    check(cache, 2, 1, settings)


@pytest.mark.parametrize("sinks", [0, 40])
@pytest.mark.parametrize("recents", [1, 200])
def test_forced_tokens(sinks, recents):
    torch.manual_seed(sinks + recents)
    settings = SparseSettings(budget=64, sinks=sinks, recents=recents)
    check(make_cache(1, 1, 32, 297, 320, settings), 1, 3, settings)


@pytest.mark.parametrize(("budget", "sizes"), [(16, (200, 400)), (150, (400, 1100))])
@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize("make", ODD_KEYS, ids=lambda make: make.__name__)
def test_odd_keys_and_ties(scorer, make, budget, sizes):
    """Ties go to the lowest positions, among candidates, sorted or bisected, and among all tokens."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=budget, scorer=scorer)
    for size, steps in zip(sizes, (1, 2), strict=True):
        cache = make_cache(1, 1, 32, size, size + 50, settings, make=make)
        check(cache, 1, 1, settings, steps=steps, make=make)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize("size", [12, 200, 400])
def test_zero_queries(scorer, size):
    torch.manual_seed(0)
    settings = SparseSettings(budget=16, scorer=scorer)
    check(make_cache(1, 1, 32, size, 450, settings, HALF), 2, 1, settings, steps=2, make_queries=zeros)


@triton.jit
def bisect_kernel(
    rank_ptr, position_ptr, marks_ptr, before_ptr, chosen_at_ptr, chosen_rank_ptr, count, words, want,
    ROOM: tl.constexpr, WORDS: tl.constexpr, FAST: tl.constexpr,  # noqa: N803
):  # fmt: skip
    every = tl.arange(0, ROOM)
    clear_marks(marks_ptr, words, WORDS)
    bisect_candidates(
        tl.load(rank_ptr + every), tl.load(position_ptr + every), every < count, count,
        marks_ptr, before_ptr, words, chosen_at_ptr, chosen_rank_ptr, want, WORDS, FAST,
    )  # fmt: skip


@pytest.mark.parametrize("size", [100, 257, 5000])
@pytest.mark.parametrize("levels", [1, 3, 40, None])
@pytest.mark.parametrize(("count", "want"), [(0, 0), (1, 1), (64, 0), (64, 1), (64, 63), (64, 64), (51, 20)])
def test_candidates_in_any_order_are_chosen_in_that_of_their_positions(size, levels, count, want):
    torch.manual_seed(count + want)
    room = 64
    rank = torch.randn(size) if levels is None else torch.randint(-levels // 2, levels, (size,)).float()
    rank[rank == 0] *= torch.tensor([-1.0, 1.0])[torch.randint(2, (int((rank == 0).sum()),))]
    at = torch.randperm(size)[:count].sort().values
    order = rank[at].sort(descending=True, stable=True).indices
    expected = at[order[:want]].sort().values
    for _ in range(3):
        shuffled = at[torch.randperm(count)]
        ranks = torch.full((room,), torch.nan)
        positions = torch.full((room,), FAR_OUTSIDE, dtype=torch.int32)
        ranks[:count], positions[:count] = rank[shuffled], shuffled.int()
        words = triton.cdiv(size, 32)
        outside = torch.full((3, max(words, room)), FAR_OUTSIDE, dtype=torch.int32, device=DEVICE)
        marks, before, chosen_at = outside
        chosen_rank = torch.full((room,), torch.nan, device=DEVICE)
        bisect_kernel[(1,)](
            ranks.to(DEVICE), positions.to(DEVICE), marks, before, chosen_at, chosen_rank, count, words, want,
            ROOM=room, WORDS=16, FAST=has_ptx(),
        )  # fmt: skip
        assert torch.equal(chosen_at.cpu()[:want].long(), expected)
        assert torch.equal(chosen_rank.cpu()[:want], rank[expected])
        assert (chosen_at[want:] == FAR_OUTSIDE).all()


@pytest.mark.parametrize("budget", [16, 150])
@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize("prediction", [-1e30, NONE_PASSES, 0.0, 1e6, -1e6])
def test_a_wrong_prediction_changes_nothing(scorer, prediction, budget):
    """No candidates, too many, and what the next steps learn from it."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=budget, scorer=scorer)
    size = 330 if budget == 16 else 1100
    check(make_cache(1, 1, 32, size, size + 20, settings), 2, 1, settings, steps=3, prediction=prediction)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_a_cache_that_is_part_of_larger_buffers(scorer):
    torch.manual_seed(0)
    settings = SparseSettings(budget=16, scorer=scorer)
    cache = spread_out(make_cache(2, 2, 80, 120, 150, settings, HALF, dim_v=48))
    check(cache, 2, 3, settings)


def test_inputs_may_be_strided_and_of_another_dtype():
    torch.manual_seed(0)
    check_strided_inputs(Poisoned(), DEVICE)


@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_a_chunk_of_keys_gets_the_codes_of_the_reference(dim, count):
    torch.manual_seed(count)
    keys = (torch.randn(2, count, 3, dim) * torch.linspace(0.1, 9, dim)).to(BRAIN).transpose(1, 2)
    keys[0, 0] = keys[0, 0, :1]
    book = some_codebook(keys)
    codes, scales = ref.encode_keys(keys, book)
    there = ref.Codebook(*(x.to(DEVICE) for x in vars(book).values()))
    found = encoded_in_the_middle(TritonBackend(), keys.to(DEVICE), there)
    assert torch.equal(found[0].cpu(), codes)
    assert torch.equal(found[1].cpu(), scales)
