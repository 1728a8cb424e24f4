"""Weights in blocks on CPUs: every operation computes with the numbers that the type defines."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from adamas_kernels.blocks import BlockWeight, block_size, unpack
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.cpu import linear as cpu
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.inner import build_inner
from adamas_kernels.cpu.linear import linear, multiply_codes, multiply_vector, quantize, ready, unpack_rows
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.program import StepProgram
from adamas_kernels.cpu.records import STAGES
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.strips import multiplies
from adamas_kernels.cpu.tasks import Program
from adamas_kernels.weights import Activation, Linear, Mlp
from block_weights import NUMBERS, assert_product, rounded, some_blocks, some_weight
from gguf import GGMLQuantizationType
from gguf.quants import quantize as ggml_quantize

ROWS = (1, 2, 37)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_has_the_sizes_of_its_type(kind):
    form, (numbers, size) = FORMATS[kind], block_size(kind)
    assert form.numbers * size == form.size * numbers


@pytest.mark.parametrize("kind", FORMATS)
def test_products_and_unpacked_rows_are_those_of_the_type(runner, kind):
    for rows in ROWS:
        for blocks in (1, 2, 5, 15):  # short blocks are read 8 at a time, then 4; the last 4 may be fewer
            columns = blocks * FORMATS[kind].numbers
            packed = some_weight(kind, rows, columns, blocks)
            weight = unpack(packed)
            x, bias = torch.randn(columns), torch.randn(rows)
            assert_product(multiply_vector(runner, packed, x, None), packed, x)
            assert_product(multiply_vector(runner, packed, x, bias), packed, x, bias)
            numbers = torch.full((rows, columns), torch.nan)
            unpack_rows(runner, packed, numbers)
            torch.testing.assert_close(numbers, weight, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))
            rounded = torch.full((rows, columns), torch.nan, dtype=torch.bfloat16)
            unpack_rows(runner, packed, rounded)
            assert torch.equal(rounded, numbers.bfloat16())


@pytest.mark.parametrize("kind", sorted(FORMATS.keys() - NUMBERS.keys()))
def test_every_code_and_scale_is_read(runner, kind):
    """Products with the unit vectors give a weight's columns one by one."""
    packed = some_weight(kind, 3, FORMATS[kind].numbers, 7)
    weight = unpack(packed)
    for at, unit in enumerate(torch.eye(packed.columns)):
        found = multiply_vector(runner, packed, unit, None)
        torch.testing.assert_close(found, weight[:, at], rtol=2e-6, atol=1e-6 * float(weight.abs().max()))


def test_scales_of_mxfp4_may_be_as_small_as_numbers_get(runner):
    packed = some_blocks("MXFP4", 8, 32)
    packed.data[:, 0] = torch.tensor([0, 1, 2, 3, 127, 200, 250, 130], dtype=torch.uint8)
    numbers = torch.empty(8, 32)
    unpack_rows(runner, packed, numbers)
    assert torch.equal(numbers, unpack(packed))


def test_rows_need_not_lie_side_by_side(runner):
    whole = some_weight("Q4_K", 9, 512)
    apart = BlockWeight("Q4_K", whole.data[::2], 512)
    x = torch.randn(512)
    assert_product(multiply_vector(runner, apart, x, None), apart, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 32), (37, 96), (130, 224)])
def test_quantized_weights_are_those_of_ggml(runner, dtype, shape):
    weight = (torch.randn(shape) * torch.logspace(-3, 1, shape[1])).to(dtype)
    weight[0, :32] = 0
    expected = ggml_quantize(weight.float().numpy(), GGMLQuantizationType.Q8_0)
    assert np.array_equal(quantize(runner, weight).data.numpy(), expected)


def test_quantized_weights_are_filled_up_with_zeros(runner):
    weight = torch.randn(5, 70)
    packed = quantize(runner, weight)
    assert packed.columns == 96
    numbers = unpack(packed)
    assert not numbers[:, 70:].any()
    # Half a step, and 127 times the error of rounding the scale to float16.
    assert (numbers[:, :70] - weight).abs().max() <= 0.57 * weight.abs().max() / 127
    assert_product(
        multiply_vector(runner, packed, torch.full((70,), 0.5), None), packed, torch.full((70,), 0.5)
    )


@pytest.mark.parametrize(("kind", "columns"), [("TQ2_0", 256), ("F16", 40)])
def test_types_without_functions_become_eight_bits(runner, kind, columns):
    packed = some_weight(kind, 6, columns)
    found = ready(runner, packed)
    assert found.kind == "Q8_0"
    numbers, exact = unpack(found)[:, :columns], unpack(packed)
    assert (numbers - exact).abs().max() <= 0.57 * exact.abs().max() / 127


def test_ready_weights_are_left_where_they_are(runner):
    packed = some_weight("Q5_K", 6, 256)
    assert ready(runner, packed) is packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [512, 5000, 1 << 16])
@pytest.mark.parametrize("inputs", [512, 500])
def test_many_rows_in_blocks_of_any_size(runner, dtype, block, inputs):
    for kind in ("Q4_K", "Q8_0"):
        packed = some_weight(kind, 100, 512)
        x, bias = torch.randn(9, inputs).to(dtype), torch.randn(100)
        found = linear(runner, packed, x, bias, torch.full((block,), torch.nan, dtype=dtype))
        expected = x.float() @ unpack(packed)[:, :inputs].T + bias
        assert found.dtype == dtype
        bound = 1e-5 if dtype == torch.float32 else 1e-2
        assert (found.float() - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if multiplies(kind)])
def test_strips_of_codes_meet_every_row(runner, kind):
    """Numbers of outputs, rows and blocks that do not fill strips, groups of four rows or rounded blocks."""
    for outputs, rows, blocks in ((1, 1, 1), (37, 7, 3), (5, 2, 13)):
        packed = some_weight(kind, outputs, blocks * FORMATS[kind].numbers)
        x, bias = torch.randn(rows, packed.columns), torch.randn(outputs)
        found = multiply_codes(runner, packed, x, bias)
        for row, out in zip(x, found, strict=True):
            assert_product(out, packed, row, bias)


@pytest.mark.parametrize("rounds", [False, True])
def test_many_rows_are_rounded_where_that_is_faster(rounds):
    packed, x = some_weight("Q4_K", 20, 512), torch.randn(9, 512)
    found = CpuBackend(rounds=rounds).linear(x, packed)
    off = (found - x @ unpack(packed).T).norm() / found.norm()
    assert (1e-4 < off < 0.02) == (rounds and multiplies("Q4_K"))


KINDS = ("Q4_K", "Q8_0", "Q5_0", "F16")


@pytest.mark.parametrize("share", [2, 1000])
def test_a_vector_goes_to_all_tasks_of_weights_of_several_types(runner, monkeypatch, share):
    monkeypatch.setattr(cpu, "TASKS_PER_THREAD", share)
    weights = [some_weight(kind, rows, 256) for kind, rows in zip(KINDS, (201, 16, 1, 50), strict=True)]
    outs = [torch.full((weight.rows + 1,), float(at)) for at, weight in enumerate(weights)]
    biases = [None, *(torch.randn(weight.rows) for weight in weights[1:])]
    records = cpu.products(runner, list(zip(weights, biases, outs, strict=True)), add=True)
    x = torch.randn(256)
    inputs = cpu.Inputs(runner, x[None])
    product = build_multiply(), int(records["tasks"].sum()), records.ctypes.data, *inputs.addresses()
    runner.run(inputs.stage, product)
    for at, (weight, bias, out) in enumerate(zip(weights, biases, outs, strict=True)):
        before = at if bias is None else bias + at
        assert_product(out[:-1], weight, x, before)
        assert out[-1] == at  # nothing is written after the rows


@pytest.mark.parametrize("count", [2, 6])
def test_several_vectors_are_multiplied_as_each_alone(runner, count):
    for kind, columns in zip(KINDS, (512, 480, 416, 512), strict=True):
        weight, bias, x = some_weight(kind, 37, columns), torch.randn(37), torch.zeros(8, 512)
        x[:count, :columns] = torch.randn(count, columns)
        inputs, out = cpu.Inputs(runner, x[:count]), torch.ones(count, 40)
        records = cpu.products(runner, [(weight, bias, out)], add=True, inputs=inputs)
        stage = build_multiply(), int(records["tasks"].sum()), records.ctypes.data, *inputs.addresses()
        runner.run(inputs.stage, stage)
        alone = torch.stack([multiply_vector(runner, weight, one, bias) for one in x[:count]])
        assert torch.equal(out[:, :37], alone + 1)
        assert (out[:, 37:] == 1).all()


def first_products(runner, mlp, x, slots, chosen=None):
    """What an MLP's stage writes, [slots, rows]; nothing may follow it."""
    out = torch.full((slots, mlp.inner + 1), torch.nan)
    program = StepProgram(runner)
    inputs = cpu.Inputs(runner, x[None])
    record = program.inner_record(mlp, inputs, out, chosen=chosen)
    runner.run(
        inputs.stage, (build_inner(), int(record["tasks"][0]), record.ctypes.data, *inputs.addresses())
    )
    assert out[:, -1].isnan().all()
    return out[:, :-1]


@pytest.mark.parametrize("biased", [False, True])
def test_a_gated_layer_of_two_types(runner, biased):
    torch.manual_seed(0)  # no number lies in the middle between two steps, see `rounded`
    for rows in (1, 33, 200):
        gate, up = some_weight("Q6_K", rows, 512), some_weight("Q4_0", rows, 512)
        biases = [torch.randn(rows) if biased else None for _ in range(2)]
        parts = [Linear(weight, bias) for weight, bias in zip((gate, up), biases, strict=True)]
        x = torch.randn(512)
        found = first_products(runner, Mlp(parts, "apart", rows, parts[0], Activation("swish")), x, 1)
        a, b = (
            unpack(w).double() @ rounded(x)[0] + (0 if bias is None else bias)
            for w, bias in zip((gate, up), biases, strict=True)
        )
        expected = torch.nn.functional.silu(a) * b
        torch.testing.assert_close(found[0].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", ["plain", "apart", "halves", "alternating"])
@pytest.mark.parametrize("share", [2, 1000])
def test_experts_that_are_chosen(runner, monkeypatch, order, share):
    """Experts with one weight or two, with limits and a shift as in GPT-OSS."""
    torch.manual_seed(0)  # as above
    monkeypatch.setattr(cpu, "TASKS_PER_THREAD", share)
    rows, experts, x = 33, 5, torch.randn(64)
    outputs = experts * rows * (2 if order in ("halves", "alternating") else 1)
    weights = [some_weight("Q8_0", outputs, 64) for _ in range(2 if order == "apart" else 1)]
    parts = [Linear(weight, torch.randn(outputs)) for weight in weights]
    chosen = torch.tensor([4, 0, 2], dtype=torch.int32)
    activation = Activation("swish", alpha=1.5, limit=0.7, shift=1.0)
    found = first_products(runner, Mlp(parts, order, rows, parts[0], activation), x, 3, chosen)
    whole = [
        (unpack(part.weight) @ rounded(x)[0].float() + part.bias).view(experts, -1)[chosen.long()]
        for part in parts
        if part.bias is not None
    ]
    if order == "plain":
        expected = whole[0] * torch.sigmoid(1.5 * whole[0])
    else:
        in_turn = whole[0][:, ::2], whole[0][:, 1::2]
        gate, up = {"apart": whole, "halves": whole[0].chunk(2, -1), "alternating": in_turn}[order]
        gate, up = gate.clamp(max=0.7), up.clamp(-0.7, 0.7)
        expected = gate * torch.sigmoid(1.5 * gate) * (up + 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("relu", torch.relu),
        ("relu_squared", lambda x: torch.relu(x).square()),
    ],
)
def test_activations_are_those_of_torch(runner, kind, function):
    x = torch.cat((torch.linspace(-12, 12, 299), torch.tensor([0.0, 1e15, -1e15])))
    rows = torch.cat((x[:, None], torch.zeros(len(x), 15)), 1)
    part = Linear(cpu.as_blocks(rows))
    mlp = Mlp([part], "plain", len(x), part, Activation(kind))
    one = torch.cat((torch.ones(1), torch.zeros(15)))
    found = first_products(runner, mlp, one, 1)[0].double()
    torch.testing.assert_close(found, function(x.double()), rtol=1e-5, atol=2e-6)


def test_stages_run_in_order_and_each_task_once(runner):
    """Every stage adds to what the previous one wrote; a program gives the same when it runs again."""
    weight = cpu.as_blocks(torch.randn(64, 64) / 8)  # vectors keep their size
    vectors = [torch.randn(64)] + [torch.zeros(64) for _ in range(40)]
    records, stages = [], []
    for x, out in pairwise(vectors):
        records.append(cpu.products(runner, [(weight, None, out)]))
        stages.append(
            (build_multiply(), int(records[-1]["tasks"][0]), records[-1].ctypes.data, x.data_ptr(), 0)
        )
    program = Program(np.array(stages, STAGES))
    for threads in (1, 2, runner.threads, 5):
        for out in vectors[1:]:
            out.zero_()
        program.run(threads)
        expected = vectors[0]
        for out in vectors[1:]:
            expected = unpack(weight) @ expected
            assert (out - expected).norm() <= 1e-4 * expected.norm()
            expected = out
