"""Linear layers over weights in blocks: multiply with a vector, unpack for prefill, and quantize."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adamas_kernels.blocks import BlockWeight, row_bytes, unpack
from adamas_kernels.cpu import rounding
from adamas_kernels.cpu.floats import KINDS
from adamas_kernels.cpu.formats import FORMATS, MOST_NUMBERS, CodeFormat
from adamas_kernels.cpu.lanes import LANES
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.quantize import QUANTIZED, build_quantize
from adamas_kernels.cpu.records import PRODUCT, ROUNDING, ROWS, STRIPS
from adamas_kernels.cpu.rounding import build_round, rounded_bytes
from adamas_kernels.cpu.rows import TILE, build_product, build_products, build_unpack
from adamas_kernels.cpu.runner import Runner, Stage
from adamas_kernels.cpu.strips import build_strips
from adamas_kernels.cpu.vectors import RAISE

TASKS_PER_THREAD = 8  # so that threads end together
NUMBERS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # types that are not packed
BLOCK = 1 << 24  # numbers of a weight unpacked at a time; a quarter of it is up to 5 % slower


def ready(runner: Runner, weight: BlockWeight) -> BlockWeight:
    """The weight itself if it can be multiplied in place, else in blocks of another type."""
    if weight.kind not in FORMATS or weight.columns % FORMATS[weight.kind].numbers:
        return quantize(runner, unpack(weight))
    return (
        weight
        if weight.data.stride(1) == 1
        else BlockWeight(weight.kind, weight.data.contiguous(), weight.columns)
    )


def quantize(runner: Runner, weight: Tensor) -> BlockWeight:
    """A weight [rows, columns], float32, bfloat16 or float16, in blocks of 8 bits, zero-padded to whole
    blocks.
    """
    numbers = FORMATS[QUANTIZED].numbers
    if weight.dtype not in KINDS:
        weight = weight.float()
    weight = F.pad(weight, (0, -weight.shape[1] % numbers)).contiguous()
    rows, columns = weight.shape
    packed = BlockWeight(
        QUANTIZED, torch.empty(rows, row_bytes(QUANTIZED, columns), dtype=torch.uint8), columns
    )
    _run_rows(runner, runner.compiled(build_quantize, KINDS[weight.dtype]), packed, weight)
    return packed


def as_blocks(weight: Tensor) -> BlockWeight:
    """A weight [rows, columns], float32, bfloat16 or float16, unchanged but zero-padded to whole blocks."""
    kind = NUMBERS[weight.dtype]
    weight = F.pad(weight, (0, -weight.shape[1] % FORMATS[kind].numbers)).contiguous()
    return BlockWeight(kind, weight.view(torch.uint8), weight.shape[1])


def unpack_rows(runner: Runner, weight: BlockWeight, out: Tensor) -> None:
    """Write a weight's numbers to `out` [rows, columns], float32 or bfloat16, with contiguous rows."""
    stage = runner.compiled(build_unpack, weight.kind, KINDS[out.dtype])
    _run_rows(runner, stage, weight, out)


def multiply_vector(runner: Runner, weight: BlockWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    """weight @ x + bias: float32 [rows], for a vector as long as the weight's rows, or shorter if their rest
    is zero. bias: float32 [rows].
    """
    out = torch.empty(weight.rows)
    _multiply(runner, x, [(weight, bias, out)])
    return out


def multiply_each(runner: Runner, weights: Sequence[BlockWeight], x: Tensor) -> Tensor:
    """The products of weights with equally many columns and one vector, concatenated: float32."""
    out = torch.empty(sum(weight.rows for weight in weights))
    parts = out.split([weight.rows for weight in weights])
    _multiply(runner, x, [(weight, None, part) for weight, part in zip(weights, parts, strict=True)])
    return out


def add_products(runner: Runner, weights: Sequence[BlockWeight], rows: Tensor) -> Tensor:
    """The sum of the products of weights, all of one shape, each with its own row: float32 [outputs]."""
    inputs = Inputs(runner, rows)
    out = torch.zeros(weights[0].rows)
    records = products(runner, [(weight, None, out) for weight in weights], add=True)
    stage = runner.compiled(build_multiply)
    each = [
        (stage, int(records["tasks"][at]), records[at:].ctypes.data, *inputs.addresses(at))
        for at in range(len(rows))
    ]
    runner.run(*([inputs.stage] if records["rounded"].any() else []), *each)
    return out


class Rounded:
    """Vectors, float32 [rows, numbers], as `stage` rounds them: bytes [rows, ...], whole blocks of any type.
    With several rows, the memory extends to whole TILEs. raised: what is added to each integer.
    """

    def __init__(self, runner: Runner, rows: Tensor, *, raised: int = 0) -> None:
        if rows.shape[1] % LANES or rows.dtype != torch.float32 or rows.stride(1) != 1:
            rows = F.pad(rows.float(), (0, -rows.shape[1] % LANES)).contiguous()
        count, numbers = rows.shape
        blocks = -(-numbers // rounding.NUMBERS)
        tasks = -(-blocks // rounding.BLOCKS_OF_TASK)
        whole = torch.empty(-(-count // TILE) * TILE, rounded_bytes(numbers), dtype=torch.uint8)
        whole[count:].zero_()
        self.rows, self.bytes = rows, whole[:count]
        self._record = np.zeros(1, ROUNDING)
        self._record[0] = (
            rows.data_ptr(), rows.stride(0), numbers, whole.data_ptr(), whole.stride(0), blocks, tasks,
            raised,
        )  # fmt: skip
        self.stage: Stage = (runner.compiled(build_round), count * tasks, self._record.ctypes.data, 0, 0)


class Inputs:
    """Vectors that weights are multiplied with, float32 [rows, numbers], and their rounded form once `stage`
    has run. They are copied only if their rows must be zero-padded to whole blocks of any type.
    """

    def __init__(self, runner: Runner, rows: Tensor) -> None:
        if rows.shape[1] % MOST_NUMBERS or rows.dtype != torch.float32 or not rows.is_contiguous():
            rows = F.pad(rows.float(), (0, -rows.shape[1] % MOST_NUMBERS)).contiguous()
        rounded = Rounded(runner, rows)
        self.rows, self.rounded, self.stage, self._held = rows, rounded.bytes, rounded.stage, rounded

    def addresses(self, row: int = 0) -> tuple[int, int]:
        """The addresses of a row and of its rounded form."""
        return self.rows[row].data_ptr(), self.rounded[row].data_ptr()

    def step(self, *, rounded: bool) -> int:
        """Bytes from one row to the next."""
        rows = self.rounded if rounded else self.rows
        return rows.stride(0) * rows.itemsize

    def only(self, row: int) -> Inputs:
        """One of the rows; `stage` rounds it with the others."""
        one = copy.copy(self)
        one.rows, one.rounded = self.rows[row : row + 1], self.rounded[row : row + 1]
        return one


def _multiply(runner: Runner, x: Tensor, parts: Sequence[tuple[BlockWeight, Tensor | None, Tensor]]) -> None:
    """Products with one vector, see `products`."""
    inputs, records = Inputs(runner, x[None]), products(runner, parts)
    stage = runner.compiled(build_multiply)
    product = stage, int(records["tasks"].sum()), records.ctypes.data, *inputs.addresses()
    runner.run(*([inputs.stage] if records["rounded"].any() else []), product)


def products(
    runner: Runner,
    parts: Sequence[tuple[BlockWeight, Tensor | None, Tensor]],
    *,
    add: bool = False,
    factor: float = 1.0,
    inputs: Inputs | None = None,
) -> np.ndarray:
    """Records of products with one vector: (weight, bias or None, out) each; bias and out are float32 [rows].
    Products are multiplied by a factor and written to out, or added to it. inputs: multiply all these
    vectors; each out is then [vectors, rows].
    """
    records = np.zeros(len(parts), PRODUCT)
    for record, (weight, bias, out) in zip(records, parts, strict=True):
        form = FORMATS[weight.kind]
        share = rows_of_task(runner, weight.rows)
        record["function"] = runner.compiled(build_product, weight.kind)
        record["data"], record["row_bytes"] = weight.data.data_ptr(), weight.data.stride(0)
        record["blocks"], record["rounded"] = weight.columns // form.numbers, isinstance(form, CodeFormat)
        record["rows"], record["bias"] = weight.rows, 0 if bias is None else bias.data_ptr()
        record["out"], record["add"], record["factor"] = out.data_ptr(), add, factor
        record["vectors"] = 1 if inputs is None else len(inputs.rows)
        if inputs is not None and len(inputs.rows) > 1:
            record["several"] = runner.compiled(build_products, weight.kind)
            record["x_step"] = inputs.step(rounded=isinstance(form, CodeFormat))
            record["out_step"] = out.stride(0) * out.itemsize
        record["share"], record["tasks"] = share, -(-weight.rows // share)
    return records


def rows_of_task(runner: Runner, rows: int, slots: int = 1) -> int:
    """Rows of a weight per task, if `slots` weights are multiplied at a time."""
    share = -(-rows * slots // (TASKS_PER_THREAD * runner.threads))
    return min(share + share % 2, rows)  # rows are multiplied two at a time


def linear(runner: Runner, weight: BlockWeight, x: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """x weight^T + bias for many rows x [N, columns or fewer], in x's dtype, float32 or bfloat16. The weight
    is unpacked piecewise to `block`, a vector of the same dtype, at least as long as a row of the weight.
    """
    out = x.new_empty(len(x), weight.rows)
    step = min(weight.rows, len(block) // weight.columns)
    for first in range(0, weight.rows, step):
        part = weight.part(first, min(weight.rows, first + step))
        numbers = block[: part.rows * weight.columns].view(part.rows, weight.columns)
        unpack_rows(runner, part, numbers)
        wanted = numbers[:, : x.shape[1]].T
        if part.rows == weight.rows:
            torch.mm(x, wanted, out=out)
        else:
            out[:, first : first + part.rows] = x @ wanted
    return out if bias is None else out.add_(bias)


def multiply_codes(runner: Runner, weight: BlockWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias for many rows x [N, columns or fewer], rounded to 8 bits first: float32 [N, rows]."""
    inputs, out = Rounded(runner, x, raised=RAISE), torch.empty(len(x), weight.rows)
    record = np.zeros(1, STRIPS)
    record[0] = (
        weight.data.data_ptr(), weight.data.stride(0), weight.columns // FORMATS[weight.kind].numbers,
        weight.rows, inputs.bytes.data_ptr(), inputs.bytes.stride(0), len(x), out.data_ptr(),
        out.stride(0),
    )  # fmt: skip
    stage = runner.compiled(build_strips, weight.kind)
    runner.run(inputs.stage, (stage, -(-weight.rows // LANES), record.ctypes.data, 0, 0))
    return out if bias is None else out.add_(bias)


def _run_rows(runner: Runner, stage: int, weight: BlockWeight, numbers: Tensor) -> None:
    """Run a stage that converts a weight to rows of numbers or back."""
    record = np.zeros(1, ROWS)
    share = -(-weight.rows // (TASKS_PER_THREAD * runner.threads))
    record[0] = (
        weight.data.data_ptr(), weight.data.stride(0), weight.columns // FORMATS[weight.kind].numbers,
        weight.rows, numbers.data_ptr(), numbers.stride(0), share,
    )  # fmt: skip
    runner.run((stage, -(-weight.rows // share), record.ctypes.data, 0, 0))
