"""The CPU backend against plain torch: equal codes, ranks and selections, errors no larger."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from adamas_kernels import reference as ref
from adamas_kernels.contract import SparseSettings
from adamas_kernels.cpu import CpuBackend, lanes, largest
from adamas_kernels.cpu.candidates import SURPLUS
from adamas_kernels.cpu.estimate import compare_block
from adamas_kernels.cpu.floats import to_float
from adamas_kernels.cpu.lanes import LANES
from adamas_kernels.cpu.product import available_forms
from adamas_kernels.cpu.records import SEGMENT, groups_of_segment
from adamas_kernels.torch.backend import TorchBackend
from layer_caches import (
    ODD_KEYS,
    all_equal,
    ascending,
    check_steps,
    check_strided_inputs,
    copied,
    encoded_in_the_middle,
    make_cache,
    one_of_two,
    poisoned_memory,
    some_codebook,
    spread_out,
    step,
    with_outliers,
    zeros,
)
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCORERS = ("dot", "manhattan")


class Poisoned(CpuBackend):
    """Starts every step with scratch memory full of NaN."""

    def decode_step(self, *arguments):
        for array in self._arena.arrays.values():
            array.fill(np.nan)
        return super().decode_step(*arguments)


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return Poisoned()


@pytest.mark.parametrize("form", available_forms(), ids=lambda form: type(form).__name__)
def test_every_form_of_the_byte_product_and_the_distance_are_exact(form):
    words, rows = 16, 5
    codes = torch.randint(-(2**31), 2**31 - 1, (LANES, words), dtype=torch.int32)
    query = torch.randint(-127, 128, (rows, 64 * words // 4), dtype=torch.int8)
    query[0], query[1] = 127, -127
    sums = np.full(rows * LANES, -1, np.int32)

    @numba.njit
    def compare(form, codes, query, sums, manhattan):
        planes = np.empty(4 * words * LANES, np.int32)
        compare_block(form, codes, 0, LANES, words, query, 0, rows, sums, planes, manhattan)

    by_word = codes.T.contiguous().flatten().numpy()
    compare(form, by_word, query.view(torch.int32).flatten().numpy(), sums, 0)
    expected = query.long() @ ref.unpack(codes).long().T
    assert np.array_equal(sums.reshape(rows, LANES), expected.numpy())
    coded = torch.zeros(rows, 4 * words, dtype=torch.int32)
    coded[:, :words] = torch.randint(-(2**31), 2**31 - 1, (rows, words), dtype=torch.int32)
    compare(form, by_word, coded.flatten().numpy(), sums, 1)
    distance = ref.unpack(coded[:, :words]).long().unsqueeze(1) - ref.unpack(codes).long()
    assert np.array_equal(sums.reshape(rows, LANES), distance.abs().sum(-1).numpy())


@pytest.mark.parametrize("instruction", [True, False])
def test_float16_is_read_exactly_with_and_without_an_instruction(monkeypatch, instruction):
    monkeypatch.setattr(lanes, "CONVERTS_HALVES", instruction and lanes.CONVERTS_HALVES)
    halves = torch.arange(-(2**15), 2**15).short()

    @numba.njit
    def read(halves, floats, one_by_one):
        for i in range(0, len(halves), LANES):
            lanes.store(floats, i, lanes.load(halves, i))
        for i in range(len(halves)):
            one_by_one[i] = to_float(halves[i])

    found = torch.full((2, len(halves)), -1.0)
    read(halves.numpy(), *found.numpy())
    expected = halves.view(torch.float16).float().expand(2, -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_a_chunk_of_keys_gets_the_codes_of_the_reference(cpu, dtype, dim):
    for count in (1, 15, 16, 17, 255, 256, 257):
        keys = (torch.randn(2, count, 3, dim) * torch.linspace(0.1, 9, dim)).to(dtype).transpose(1, 2)
        keys[0, 0] = keys[0, 0, :1]
        keys[1, 0, :, 3] *= 100
        book = some_codebook(keys)
        found, expected = encoded_in_the_middle(cpu, keys, book), ref.encode_keys(keys, book)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dim_v"),
    [
        (1, 1, 64, 64),
        (4, 2, 80, 80),
        (3, 1, 96, 48),
        (8, 2, 128, 128),
        (6, 1, 256, 64),
        (7, 1, 64, 72),
        (16, 2, 16, 24),
    ],
)
def test_heads_and_dimensions(cpu, scorer, dtype, heads, kv_heads, dim, dim_v):
    torch.manual_seed(dim + heads)
    settings = SparseSettings(budget=24, scorer=scorer)
    cache = make_cache(2, kv_heads, dim, 333, 340, settings, dtype, dim_v)
    check_steps(cpu, cache, heads, 1, settings, steps=3)


@pytest.mark.parametrize("form", available_forms(), ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("scorer", SCORERS)
def test_a_step_with_every_form_of_the_byte_product(form, scorer):
    backend = Poisoned(form=form)
    settings = SparseSettings(budget=24, scorer=scorer)
    torch.manual_seed(0)
    cache = make_cache(1, 2, 80, 1500, 1600, settings)
    check_steps(backend, cache, 6, 3, settings, steps=2)


@pytest.mark.parametrize("new", [1, 3, 16])
@pytest.mark.parametrize("scorer", SCORERS)
def test_contexts_around_every_edge(cpu, scorer, new):
    for budget in (16, 100):
        settings = SparseSettings(budget=budget, scorer=scorer)
        edges = (0, 1, 2, 15, 16, 17, budget - 1, budget, budget + 1, budget + 16, 255, 256, 257)
        for length in (*edges, SEGMENT - 16, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5000):
            torch.manual_seed(length)
            check_steps(cpu, make_cache(1, 2, 64, length, length + new, settings), 4, new, settings)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 16, 300, 2500, 4096])
@pytest.mark.parametrize("scorer", SCORERS)
def test_budgets(cpu, scorer, budget):
    torch.manual_seed(budget)
    settings = SparseSettings(budget=budget, scorer=scorer)
    check_steps(cpu, make_cache(1, 1, 64, 4500, 4510, settings), 2, 1, settings, steps=2)
    check_steps(cpu, make_cache(1, 1, 64, 40, 50, settings), 2, 3, settings, steps=2)


@pytest.mark.parametrize("sinks", [0, 40])
@pytest.mark.parametrize("recents", [1, 2, 200])
def test_forced_tokens(cpu, sinks, recents):
    """With few recents, codes of the newest tokens are ranked for later ones."""
    settings = SparseSettings(budget=64, sinks=sinks, recents=recents)
    for length in (1, 30, 700):
        torch.manual_seed(length)
        check_steps(cpu, make_cache(1, 2, 64, length, length + 40, settings), 6, 16, settings, steps=2)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("options", [{"edge": 1.5}, {"edge": 10.0}, {"compensate": False}])
def test_fixed_edges_and_no_compensation(cpu, scorer, options):
    torch.manual_seed(0)
    settings = SparseSettings(budget=32, scorer=scorer, **options)
    check_steps(cpu, make_cache(4, 2, 64, 600, 640, settings, torch.bfloat16), 6, 3, settings, steps=2)


def best_side_by_side(*shape: int) -> Tensor:
    """The highest or lowest ranking keys are neighbours in the middle."""
    distance = (torch.arange(shape[2]) - shape[2] / 2).abs()
    return torch.ones(shape) * (2 - distance / shape[2])[:, None] + 0.01 * torch.randn(shape)


def best_in_few_groups(*shape: int) -> Tensor:
    """The highest ranking keys fill a quarter of the groups of every segment, whatever their size."""
    high = torch.arange(shape[2]) % (2 * LANES) < LANES // 2
    return torch.ones(shape) * torch.where(high, 1 + torch.rand(shape[2]), -torch.rand(shape[2]))[:, None]


def of_all_magnitudes(*shape: int) -> Tensor:
    """Bisection of the range of values does not end."""
    return torch.ones(shape) * torch.exp(-12 * torch.rand(shape[2]))[:, None]


HOSTILE_KEYS = (all_equal, one_of_two, ascending, best_side_by_side, best_in_few_groups, of_all_magnitudes)


@pytest.mark.parametrize("make", HOSTILE_KEYS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("scorer", SCORERS)
def test_no_data_leads_to_another_choice(cpu, scorer, make):
    for budget, length in ((24, 6000), (300, 2600)):
        torch.manual_seed(budget)
        settings = SparseSettings(budget=budget, scorer=scorer)
        cache = make_cache(1, 2, 64, length, length + 10, settings, make=make)
        check_steps(cpu, cache, 4, 1, settings, steps=2)
        check_steps(cpu, cache, 4, 3, settings, make=make, make_queries=make)


@pytest.mark.parametrize("make", [torch.randn, *HOSTILE_KEYS], ids=lambda make: make.__name__)
def test_candidates_are_few_whatever_the_data(cpu, make):
    """Earlier work of a step is the same for all data. Typically little more than the budget remains."""
    torch.manual_seed(0)
    budget, length, heads = 64, 20000, 4
    settings = SparseSettings(budget=budget)
    cache = make_cache(1, 2, 64, length, length + 10, settings, make=make)
    segments, groups = -(-length // SEGMENT), groups_of_segment(budget, length)
    for _ in range(3):  # each time with a query of a new direction
        step(cpu, cache, *(torch.randn(1, h, 1, 64) for h in (heads, 2, 2)), settings)
        counts = cpu._arena.arrays["counts"].view(np.int32)[0, : heads * segments]
        found = counts.reshape(heads, segments).sum(1)
        want = budget - sum(settings.forced)
        assert (found >= want).all()
        assert (found <= (want + want // SURPLUS) * SEGMENT // groups + segments * (want + LANES)).all()
        if make is torch.randn:
            assert (found <= 2 * budget).all()


def ranks_of_many_kinds() -> list[Tensor]:
    torch.manual_seed(0)
    few = torch.randint(-2, 3, (500,)).float()
    outlier = torch.randn(500)
    outlier[77] = 3e38
    mixed = torch.exp(80 * torch.randn(500).clamp(-1, 1)) * few.sign()
    return [torch.randn(500), torch.randn(1), torch.zeros(40), few, few * 0.0, outlier, -outlier, mixed]


@pytest.mark.parametrize("ranks", ranks_of_many_kinds())
@pytest.mark.parametrize("surplus", [0, 20])
def test_the_rank_that_some_number_reach(ranks, surplus):
    padded = torch.cat([ranks, torch.full((2 * LANES,), torch.nan)]).numpy()

    @numba.njit
    def find(padded, count, want, surplus):
        largest.pad(padded, count)
        return largest.kth_largest(padded, count, want, surplus)

    count = len(ranks)
    for want in {1, min(2, count), count // 3 + 1, count}:
        found = torch.tensor(find(padded, count, want, surplus))
        reached = (ranks >= found).sum()
        assert reached >= want
        assert reached <= want + surplus or (ranks > found).sum() < want
    assert find(padded, count, count + 1, surplus) == largest.LOWEST


@pytest.mark.parametrize("instruction", [True, False])
def test_lanes_move_together_with_and_without_an_instruction(monkeypatch, instruction):
    monkeypatch.setattr(lanes, "COMPRESSES", instruction and lanes.COMPRESSES)
    numbers = np.arange(LANES, dtype=np.float32)

    @numba.njit
    def move(numbers, integers, bits, floats, ints):
        mask = lanes.mask_of_bits(bits)
        lanes.store(floats, 0, lanes.compress(lanes.load(numbers, 0), mask))
        lanes.store(ints, 0, lanes.compress(lanes.load(integers, 0), mask))

    for bits in (0, 1, 1 << 15, 0b1010_0110_0000_0110, (1 << 16) - 1):
        floats, ints = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
        move(numbers, numbers.astype(np.int32), bits, floats, ints)
        expected = [lane for lane in range(LANES) if bits >> lane & 1]
        assert floats[: len(expected)].tolist() == expected
        assert ints[: len(expected)].tolist() == expected


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("make", ODD_KEYS, ids=lambda make: make.__name__)
def test_odd_keys_and_ties(cpu, scorer, make):
    """Ties go to the lowest positions."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=32, scorer=scorer)
    cache = make_cache(1, 2, 64, 3000, 3010, settings, make=make)
    check_steps(cpu, cache, 4, 1, settings, steps=3, make=make)


@pytest.mark.parametrize("scorer", SCORERS)
def test_zero_queries(cpu, scorer):
    torch.manual_seed(0)
    settings = SparseSettings(budget=32, scorer=scorer)
    for make in (torch.randn, with_outliers):
        cache = make_cache(1, 2, 64, 900, 940, settings, make=make)
        check_steps(cpu, cache, 4, 1, settings, steps=2, make=make, make_queries=zeros)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_cache_that_is_part_of_larger_buffers(cpu, scorer):
    torch.manual_seed(0)
    settings = SparseSettings(budget=32, scorer=scorer)
    cache = spread_out(make_cache(2, 4, 64, 500, 540, settings, torch.bfloat16, dim_v=48))
    check_steps(cpu, cache, 8, 3, settings, steps=2)


def test_inputs_may_be_strided_and_of_another_dtype(cpu):
    torch.manual_seed(0)
    check_strided_inputs(cpu)


def test_one_thread_does_what_two_do():
    settings = SparseSettings(budget=64)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            cache, backend = make_cache(1, 3, 64, 9000, 9040, settings), Poisoned()
            with poisoned_memory():
                steps = [
                    step(backend, cache, *(torch.randn(1, h, 1, 64) for h in (9, 3, 3)), settings)
                    for _ in range(2)
                ]
            results.append(steps)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_caches_come_and_go(cpu):
    """A cache's buffers may be replaced, and a dead cache leaves nothing behind."""
    torch.manual_seed(0)
    settings = SparseSettings(budget=16)
    kept = check_steps(cpu, make_cache(1, 1, 64, 100, 140, settings), 2, 1, settings)
    larger = make_cache(1, 1, 64, 300, 340, settings)
    vars(kept).update(vars(copied(larger)))
    q, k, v = (torch.randn(1, h, 1, 64) for h in (2, 1, 1))
    plain = TorchBackend().decode_step(q, k, v, larger, 0.125, settings)
    with poisoned_memory():
        torch.testing.assert_close(cpu.decode_step(q, k, v, kept, 0.125, settings), plain)
    known = id(kept)
    assert known in cpu._layers
    del kept
    gc.collect()
    assert known not in cpu._layers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "new"), [(1, 1, 64, 1), (6, 2, 80, 3), (8, 1, 128, 1), (3, 3, 16, 16)]
)
def test_an_error_chooses_as_the_reference_does(cpu, dtype, heads, kv_heads, dim, new):
    for error, budget in ((2**-5, 300), (2**-8, 300), (2**-11, 60), (0.5, 20)):
        for length in (0, 1, 19, 20, 21, budget, 2 * SEGMENT + 100):
            torch.manual_seed(length)
            settings = SparseSettings(budget=budget, error=error)
            cache = make_cache(2, kv_heads, dim, length, length + 2 * new, settings, dtype)
            check_steps(cpu, cache, heads, new, settings, steps=2, make_queries=large)


def large(*shape: int) -> Tensor:
    """Some heads attend broadly, others to few tokens."""
    return torch.randn(shape) * torch.logspace(-1, 1, shape[1])[:, None, None]


@pytest.mark.parametrize("make", [*ODD_KEYS, *HOSTILE_KEYS], ids=lambda make: make.__name__)
@pytest.mark.parametrize("make_queries", [torch.randn, zeros])
def test_an_error_on_odd_keys(cpu, make, make_queries):
    for error in (2**-3, 2**-7, 2**-13):
        torch.manual_seed(0)
        settings = SparseSettings(budget=200, error=error)
        cache = make_cache(1, 2, 64, 3000, 3010, settings, make=make)
        check_steps(cpu, cache, 4, 2, settings, steps=2, make=make, make_queries=make_queries)


def test_an_error_leaves_out_what_a_budget_would_attend_to(cpu):
    torch.manual_seed(0)
    attended = {}
    for error in (None, 2**-11, 2**-7, 0.5):
        settings = SparseSettings(budget=400, error=error)
        cache = make_cache(1, 1, 64, 3000, 3010, settings)
        q, k, v = 2 * torch.randn(1, 8, 1, 64), torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)
        _, _, tally = step(cpu, cache, q, k, v, settings)
        attended[error] = tally[0, 0].sum() / 8
    assert attended[None] == 400
    assert attended[None] >= attended[2**-11] > attended[2**-7] > attended[0.5] == ref.LEAST_ATTENDED


def test_a_step_that_does_not_fit_is_refused(cpu):
    settings = SparseSettings(budget=16)
    cache = make_cache(1, 1, 64, 100, 102, settings)
    with pytest.raises(ValueError, match="do not fit a cache of 102"):
        cpu.decode_step(*(torch.randn(1, 1, 3, 64) for _ in range(3)), cache, 0.125, settings)


ENCODE = """
import sys, torch
from adamas_kernels import reference
import adamas_kernels.contract
assert "numba" not in sys.modules
from adamas_kernels.blocks import BlockWeight, row_bytes
from adamas_kernels.cpu import CpuBackend, encode, rows
if len(sys.argv) > 1:
    encode.source_stamp = rows.source_stamp = lambda: int(sys.argv[1])
keys = torch.ones(1, 1, 16, 16)
codes, scales = torch.zeros(1, 1, 16, 1, dtype=torch.int32), torch.zeros(1, 1, 16, dtype=torch.float16)
backend = CpuBackend(print)
for _ in range(2):
    backend.encode_keys(keys, reference.fit_codebook(keys), codes, scales)
weight = BlockWeight("Q4_K", torch.zeros(2, row_bytes("Q4_K", 256), dtype=torch.uint8), 256)
backend.linear(torch.ones(1, 256), weight)
"""


def test_compiled_code_is_kept_on_disk_until_a_source_changes(tmp_path):
    def announced(*arguments):
        environment = {
            **os.environ,
            "NUMBA_CACHE_DIR": str(tmp_path),
            "PYTHONPATH": str(Path(ref.__file__).parents[1]),
        }
        command = [sys.executable, "-c", ENCODE, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.count("compiling CPU kernels")

    assert [announced(), announced(), announced("1"), announced("1")] == [1, 0, 1, 0]


def test_code_of_sources_that_were_replaced_meanwhile_is_not_taken_for_that_of_the_new_ones(tmp_path):
    """As by an update while a server runs."""
    sources = tmp_path / "adamas_kernels"
    shutil.copytree(Path(ref.__file__).parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    changes = "import pathlib; from adamas_kernels.cpu import build, rows\n"
    changes += f"file = pathlib.Path({str(sources / 'cpu' / 'atomics.py')!r})\n"
    changes += "before = build.source_stamp(); file.write_text(file.read_text() + '# new')\n"
    stamps = "print(before, build.source_stamp())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def printed(program):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    before, after = printed(changes + stamps)
    assert before == after
    assert printed("from adamas_kernels.cpu import build; print(build.source_stamp())") != [before]


PRODUCTS = """
import sys, torch
from adamas_kernels.cpu import CpuBackend
from block_weights import assert_product, some_weight
for kind in sys.argv[1:]:
    weight, x = some_weight(kind, 5, 512), torch.ones(1, 512)
    assert_product(CpuBackend(print).linear(x, weight)[0], weight, x[0])
"""


def test_code_that_several_processes_kept_is_told_apart(tmp_path):
    """Each process compiles another type of weights, in the same order, and the last one loads them all."""
    folders = Path(ref.__file__).parents[1], Path(__file__).parent
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    kinds = "Q4_1", "Q8_0", "Q5_1"
    for asked in (*([kind] for kind in kinds), kinds):
        done = subprocess.run([sys.executable, "-c", PRODUCTS, *asked], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    assert b"compiling" not in done.stdout


def test_processes_that_compile_at_the_same_time_keep_their_code_apart(tmp_path):
    program = str(Path(__file__).with_name("compile_constants.py"))
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "code"),
        "PYTHONPATH": str(Path(ref.__file__).parents[1]),
    }
    folder = tmp_path / "ready"
    folder.mkdir()

    def started(seed):
        return subprocess.Popen([sys.executable, program, str(seed), str(folder), "3"], env=environment)

    assert [process.wait() for process in [started(seed) for seed in range(3)]] == [0, 0, 0]
    assert started(3).wait() == 0  # it loads all of them
