"""Packed weights: what packing loses, and that every way to use them computes with the same numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from adamas_kernels import weights as spec
from adamas_kernels.cpu import linear as cpu
from adamas_kernels.cpu.linear import linear, multiply_vector, pack, unpack_columns
from adamas_kernels.cpu.records import STAGES
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.tasks import Program
from adamas_kernels.weights import GROUP, STRIP, PackedWeight, unpack
from torch import Tensor

SHAPES = [(16, 32), (1, 1), (37, 65), (130, 224), (48, 96)]


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


def on_grid(rows: int, columns: int, least: int, largest: int, *, centred: bool) -> Tensor:
    """Weights whose groups of 32 inputs lie on a grid of their own that reaches both ends."""
    groups = -(-columns // GROUP)
    codes = torch.randint(least, largest + 1, (rows, groups, GROUP)).float()
    codes[..., 0], codes[..., 1] = least, largest
    step = 0.01 * torch.rand(rows, groups, 1) + 0.001
    offset = 0 if centred else -step * (8 * torch.rand(rows, groups, 1))
    return (codes * step + offset).flatten(1)[:, :columns]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_are_off_by_half_a_step_at_most(runner, dtype, shape):
    weight = (torch.randn(shape) * torch.logspace(-3, 1, shape[1])).to(dtype)
    packed = pack(runner, weight)
    found = unpack(packed)
    groups = torch.nn.functional.pad(weight.float().abs(), (0, -shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    step = groups.amax(-1).repeat_interleave(GROUP, 1)[:, : shape[1]] / 127
    assert found.shape == weight.shape
    assert ((found - weight.float()).abs() <= 0.502 * step + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("least", "largest", "centred", "bits"),
    [(0, 15, False, 4), (-8, 7, True, 4), (-16, 15, True, 8), (-32, 31, True, 8), (-127, 127, True, 8)],
    ids=["Q4_K", "Q4_0", "Q5_0", "6 bits", "Q8_0"],
)
def test_a_grid_of_the_source_is_kept(runner, dtype, least, largest, centred, bits):
    weight = on_grid(64, 256, least, largest, centred=centred)
    packed = pack(runner, weight.to(dtype))
    assert packed.bits == bits
    lost = (unpack(packed) - weight).norm() / weight.norm()
    rounded = (weight.to(dtype).float() - weight).norm() / weight.norm()
    # Float16 scales, and many values together tell where the grid was; 127 steps are as fine as rounding.
    assert lost <= rounded * (1.3 if largest == 127 else 0.5) + 5e-4


def test_a_weight_with_few_groups_off_the_grid_is_not_packed_to_four_bits(runner):
    weight = on_grid(1024, 64, 0, 15, centred=False)
    weight[-100:] = torch.randn(100, 64)  # behind the strips that are tried first
    packed = pack(runner, weight)
    assert packed.bits == 8
    assert (unpack(packed) - weight).abs().max() < 0.02


@pytest.mark.parametrize(
    "make", [torch.zeros, lambda *s: torch.full(s, 0.25), lambda *s: 1e-30 * torch.ones(s)]
)
def test_constant_weights(runner, make):
    weight = make(20, 40)
    found = unpack(pack(runner, weight))
    assert found.isfinite().all()
    torch.testing.assert_close(found, weight, rtol=2**-8, atol=0)


def packed_both(rows: int, columns: int) -> list[PackedWeight]:
    """Random packed weights of both kinds; what fills up the last strip and group is not zero."""
    made = []
    for bits in (4, 8):
        packed = spec.allocate(rows, columns, bits, 2.0**-3)
        packed.codes.random_(0, 256)
        packed.scales.uniform_(0.5, 2)
        if packed.offsets is not None:
            packed.offsets.normal_()
        made.append(packed)
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_unpacked_columns_are_those_of_the_specification(runner, shape):
    for packed in packed_both(*shape):
        weight = unpack(packed)
        strips, groups = packed.scales.shape[:2]
        x = torch.randn(shape[1])
        bias = torch.randn(strips * STRIP)
        expected = weight.double() @ x.double()
        scale = weight.abs().double() @ x.abs().double()
        for added in (None, bias):
            found = multiply_vector(runner, packed, x, added)
            total = expected if added is None else expected + added[: shape[0]]
            assert ((found - total).abs() <= 1e-6 * scale + 1e-6).all()
        columns = torch.full((groups * GROUP, strips * STRIP), torch.nan)
        unpack_columns(runner, packed, columns)
        torch.testing.assert_close(columns[: shape[1], : shape[0]].T, weight, rtol=1e-6, atol=1e-6)
        rounded = torch.empty(groups * GROUP, strips * STRIP, dtype=torch.bfloat16)
        unpack_columns(runner, packed, rounded)
        assert torch.equal(rounded, columns.bfloat16())


@pytest.mark.parametrize("block", [GROUP * STRIP, 1 << 12, 1 << 16])
def test_many_rows_in_blocks_of_any_size(runner, block):
    for packed in packed_both(100, 70):
        x, bias = torch.randn(9, 70), torch.randn(112)
        found = linear(runner, packed, x, bias, torch.full((max(block, 3 * GROUP * STRIP),), torch.nan))
        expected = x @ unpack(packed).T + bias[:100]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_vector_goes_to_all_tasks_of_several_weights(runner, monkeypatch):
    monkeypatch.setattr(cpu, "TASKS_PER_THREAD", 1000)  # a strip to a task
    weights = packed_both(200, 64)
    outs = [torch.zeros(208), torch.full((208,), 2.0)]
    records = cpu.products(
        runner.threads, [(w, None, out) for w, out in zip(weights, outs, strict=True)], add=True
    )
    x = torch.randn(64)
    stage = cpu.build_multiply()
    runner.run((stage, int(records["tasks"].sum()), records.ctypes.data, x.data_ptr(), 0))
    assert records["tasks"].tolist() == [13, 13]
    for weight, out, before in zip(weights, outs, (0.0, 2.0), strict=True):
        torch.testing.assert_close(out[:200], unpack(weight) @ x + before, rtol=1e-4, atol=1e-4)


def test_stages_run_in_order_and_each_task_once(runner):
    """Every stage adds to what the one before has written; a program runs again as it did before."""
    weight = spec.allocate(64, 64, 8, 1.0)
    weight.codes.random_(0, 256)
    weight.scales.fill_(2.0**-8)
    vectors = [torch.randn(64)] + [torch.zeros(64) for _ in range(40)]
    records, stages = [], []
    for x, out in pairwise(vectors):
        records.append(cpu.products(8, [(weight, None, out)]))
        stages.append(
            (cpu.build_multiply(), int(records[-1]["tasks"][0]), records[-1].ctypes.data, x.data_ptr(), 0)
        )
    program = Program(np.array(stages, STAGES))
    expected = vectors[0]
    for threads in (1, 2, runner.threads, 5):
        for out in vectors[1:]:
            out.zero_()
        program.run(threads)
        expected = vectors[0]
        for out in vectors[1:]:
            expected = unpack(weight) @ expected
            assert (out - expected).norm() <= 1e-4 * expected.norm()
            expected = out
