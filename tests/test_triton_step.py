"""The Triton kernels against the specification: in the interpreter here, natively with `-m gpu` on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from adamas_kernels import reference as ref
from adamas_kernels.contract import SparseSettings
from adamas_kernels.triton.backend import RANK_BLOCK, TritonBackend
from adamas_kernels.triton.scratch import group_count, list_size
from adamas_kernels.triton.shortlist import TWIST
from layer_caches import (
    ODD_KEYS,
    check_steps,
    check_strided_inputs,
    copied,
    encoded_in_the_middle,
    make_cache,
    some_codebook,
    spread_out,
    zeros,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAR_OUTSIDE = -(2**30)
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


class Poisoned(TritonBackend):
    """Starts every step with scratch buffers full of NaN and of positions far out of range."""

    def scratch(self, *shape):
        scratch = super().scratch(*shape)
        for buffer in vars(scratch).values():
            buffer.fill_(torch.nan if buffer.is_floating_point() else FAR_OUTSIDE)
        return scratch


def check(cache, heads, new, settings, groups=None, **options):
    """Steps equal the specification's; returns how many groups the last one re-read, by query."""
    backend = Poisoned(groups=groups)
    check_steps(backend, cache, heads, new, settings, device=DEVICE, **options)
    return backend.reread()


@pytest.fixture(autouse=True)
def _mended_interpreter(monkeypatch):
    """Triton's interpreter truncates the bits that bfloat16 lacks; every GPU rounds."""
    if DEVICE == "cuda":
        return
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_float(x, source, target, rounding):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.array(x)).bfloat16().view(torch.int16).numpy()
        return convert(x, source, target, rounding)

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)


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
GROUPS = 64
# Tokens between sinks and recents are dealt to groups, and all are listed while they fit.
TURN_EDGES = [RECENTS + turns * GROUPS for turns in (1, 2, 4)]
LIST_EDGE = RECENTS + FORCED + list_size(BUDGET) * 7 // 8


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize("size", [*(1, 2, 3, 8), *around(BUDGET, *TURN_EDGES, LIST_EDGE)])
@pytest.mark.parametrize("heads", [1, 2])
def test_contexts_around_every_edge(scorer, size, heads):
    """A single query of a KV head is multiplied token by token, two as a tile."""
    torch.manual_seed(size)
    settings = SparseSettings(budget=BUDGET, scorer=scorer, recents=RECENTS)
    check(make_cache(1, 1, 64, size - 1, 300, settings), heads, 1, settings, groups=GROUPS)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize("heads", [1, 3, 7])
def test_a_context_of_many_turns(scorer, heads):
    torch.manual_seed(0)
    settings = SparseSettings(budget=BUDGET, scorer=scorer)
    check(make_cache(1, 1, 64, 2999, 3100, settings), heads, 1, settings, steps=2)


def group_of(tokens, groups):
    """The group to which each of this many tokens is dealt."""
    position = torch.arange(tokens)
    return (position % groups) ^ ((position // groups * TWIST.value) & (groups - 1))


def test_every_turn_deals_a_token_to_each_group_in_another_order():
    group = group_of(64 * 128, 128).view(64, 128)
    assert torch.equal(group.sort(1).values, torch.arange(128).expand(64, -1))
    assert torch.equal(group[0], torch.arange(128))
    for period in (2, 16, 128):  # tokens this far apart are not always in the same groups
        far_apart = group.flatten()[::period]
        assert len(far_apart.unique()) == min(128, len(far_apart))
    assert (group.view(64, 8, 16).diff(dim=2).abs() < 16).all()  # but sixteen neighbours stay neighbours


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("groups", [64, 128])
def test_groups_with_three_of_the_best_are_looked_at_again(heads, groups):
    torch.manual_seed(0)
    settings = SparseSettings(budget=48, sinks=1, recents=1)

    def alike_in_a_group(*shape):
        keys = torch.randn(*shape[:2], groups, shape[3])
        return keys[:, :, group_of(shape[2], groups)] + 0.01 * torch.randn(shape)

    cache = make_cache(1, 1, 64, 20 * groups, 20 * groups + 10, settings, make=alike_in_a_group)
    assert (check(cache, heads, 1, settings, groups=groups, make=torch.randn) > 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_groups_with_two_of_the_best_and_ties_at_the_border(seed):
    """Of groups whose third ties, only the first turns are looked at again; of those with three above the
    ties, all.
    """
    torch.manual_seed(seed)
    settings = SparseSettings(budget=48, sinks=1, recents=1)
    groups, size = 64, 20 * 64

    def mostly_ties(*shape):
        above = torch.rand(shape[2]) < 0.75 * settings.budget / size
        return torch.randn(*shape[:2], 1, shape[3]) * torch.where(above, 1 + torch.rand(shape[2]), 0)[:, None]

    cache = make_cache(1, 1, 64, size, size + 10, settings, make=mostly_ties)
    again = check(cache, 6, 1, settings, groups=groups, make=torch.randn)
    assert (again > 3).any()
    assert (again < groups // 2).all()


def test_far_more_extras_than_are_read_at_a_time():
    """All tokens of a budget are in few groups of many turns."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=300, sinks=1, recents=1)
    groups, size = 512, 8 * RANK_BLOCK * 8

    def large_in_few_groups(*shape):
        return torch.where((group_of(shape[2], groups) < 60)[:, None], 3, 1) * torch.randn(shape)

    cache = make_cache(1, 1, 16, size - 1, size, settings, make=large_in_few_groups)
    assert (check(cache, 1, 1, settings, groups=groups, make=torch.randn) > 10).all()


def test_groups_are_enough_for_every_budget():
    for budget in (1, 16, 100, 128, 129, 700, 1472, 5000, 40000):
        for capacity in (1, 100, 5000, 1 << 20):
            for device in ("cpu", "cuda"):
                groups = group_count(torch.device(device), budget, capacity)
                assert groups >= max(budget, list_size(budget))
                assert groups & (groups - 1) == 0
        assert list_size(budget) * 7 // 8 >= budget


@pytest.mark.parametrize("capacity", [1, 2, 3, 17, 63, 64, 65, 100, 127, 129, 200])
def test_a_last_block_that_does_not_fit_is_moved_back(capacity):
    settings = SparseSettings(budget=8, sinks=1, recents=1)
    for size in {capacity, max(1, capacity - 1)}:
        torch.manual_seed(size)
        check(make_cache(1, 1, 32, size - 1, capacity, settings), 1, 1, settings)


@pytest.mark.parametrize(("scorer", "size"), [("dot", 16), ("manhattan", 24), ("dot", 128)])
def test_sixteen_new_tokens(scorer, size):
    """More than the recents, so that some are ranked by codes that this step writes."""
    torch.manual_seed(size)
    settings = SparseSettings(budget=16, scorer=scorer)
    check(make_cache(1, 1, 32, size - 16, 128, settings, HALF), 2, 16, settings)


@pytest.mark.parametrize(
    ("budget", "scorer", "size"),
    [
        (1, "dot", 90),
        (2, "manhattan", 90),
        (100, "dot", 99),
        (100, "manhattan", 100),
        (100, "dot", 101),
        (100, "dot", 700),
        (128, "manhattan", 200),
        (128, "dot", 200),
        (300, "dot", 299),
        (300, "dot", 301),
        (300, "manhattan", 700),
        (1024, "dot", 90),
        (1024, "dot", 1100),
        (1024, "manhattan", 1100),
        (4096, "dot", 300),
    ],
)
def test_budgets(budget, scorer, size):
    torch.manual_seed(budget + size)
    settings = SparseSettings(budget=budget, scorer=scorer)
    check(make_cache(1, 1, 64, size - 1, 1152, settings), 1, 1, settings)


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
    """Ties go to the lowest positions."""
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


def large(*shape):
    """Some heads attend broadly, others to few tokens."""
    return torch.randn(shape) * torch.logspace(-1, 1, shape[1])[:, None, None]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype", "new", "batch"),
    [
        (1, 1, 64, FULL, 1, 1),
        (6, 2, 80, HALF, 1, 1),
        (4, 1, 128, BRAIN, 1, 1),
        (2, 1, 16, FULL, 3, 2),
        (2, 1, 256, HALF, 1, 1),
    ],
)
@pytest.mark.parametrize(("budget", "error"), [(20, 0.5), (60, 2**-8), (160, 2**-6)])
def test_an_error_chooses_as_the_reference_does(heads, kv_heads, dim, dtype, new, batch, budget, error):
    for length in (3, 350):
        torch.manual_seed(length)
        settings = SparseSettings(budget=budget, error=error)
        cache = make_cache(batch, kv_heads, dim, length, 370, settings, dtype)
        check(cache, heads, new, settings, make_queries=large)


@pytest.mark.parametrize("make", ODD_KEYS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("make_queries", [torch.randn, zeros])
def test_an_error_on_odd_keys(make, make_queries):
    for budget, error in ((50, 2**-4), (140, 2**-9)):
        torch.manual_seed(0)
        settings = SparseSettings(budget=budget, error=error)
        cache = make_cache(1, 1, 32, 300, 310, settings, make=make)
        check(cache, 2, 1, settings, make=make, make_queries=make_queries)


def test_an_error_where_groups_are_looked_at_again():
    torch.manual_seed(0)
    settings = SparseSettings(budget=300, sinks=1, recents=1, error=2**-10)
    groups, size = 512, 8192

    def large_in_few_groups(*shape):
        return torch.where((group_of(shape[2], groups) < 60)[:, None], 3, 1) * torch.randn(shape)

    cache = make_cache(1, 1, 16, size - 1, size, settings, make=large_in_few_groups)
    assert (check(cache, 1, 1, settings, groups=groups, make=torch.randn) > 10).all()


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
def test_a_cache_that_is_part_of_larger_buffers(scorer):
    torch.manual_seed(0)
    settings = SparseSettings(budget=16, scorer=scorer)
    cache = spread_out(make_cache(2, 2, 80, 120, 150, settings, HALF, dim_v=48))
    check(cache, 2, 3, settings)


@pytest.mark.parametrize("budget", [16, 200])
def test_each_new_token_may_have_a_tally_of_its_own(budget):
    """So that those of rejected drafts are left out."""
    torch.manual_seed(budget)
    settings, size, heads, new = SparseSettings(budget=budget), 120, 4, 3
    shared_cache = copied(make_cache(1, 2, 32, size, 150, settings), DEVICE)
    tokens = [torch.randn(1, count, new, 32, device=DEVICE) for count in (heads, 2, 2)]
    cache = copied(shared_cache, DEVICE)
    shared, each = (torch.zeros(parts, 2, 150, device=DEVICE) for parts in (1, new))
    for its, tally in ((shared_cache, shared), (cache, each)):
        TritonBackend().decode_step(*tokens, its, 0.2, settings, tally)
    torch.testing.assert_close(each.sum(0), shared[0])
    attended = [heads * min(budget, size + 1 + token) for token in range(new)]
    assert each[:, 0].sum(1).tolist() == attended


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
