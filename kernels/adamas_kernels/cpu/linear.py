"""Linear layers over weights in blocks: multiply with a vector, unpack for prefill, and quantize."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adamas_kernels.blocks import BlockWeight, row_bytes, unpack
from adamas_kernels.cpu.floats import KINDS
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.quantize import QUANTIZED, build_quantize
from adamas_kernels.cpu.records import PRODUCT, ROWS
from adamas_kernels.cpu.rows import build_product, build_products, build_unpack
from adamas_kernels.cpu.runner import Runner

TASKS_PER_THREAD = 8  # so that threads end together
NUMBERS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # types that are not packed
BLOCK = 1 << 24  # numbers of a weight that are unpacked at a time; a fourth of it is up to 5 % slower


def ready(runner: Runner, weight: BlockWeight) -> BlockWeight:
    """The weight as it is where it can be multiplied in place, else in blocks of another type."""
    if weight.kind not in FORMATS or weight.columns % FORMATS[weight.kind].numbers:
        return quantize(runner, unpack(weight))
    return (
        weight
        if weight.data.stride(1) == 1
        else BlockWeight(weight.kind, weight.data.contiguous(), weight.columns)
    )


def quantize(runner: Runner, weight: Tensor) -> BlockWeight:
    """A weight [rows, columns], float32, bfloat16 or float16, in blocks of 8 bits, filled up with columns of
    zeros to whole blocks.
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
    """A weight [rows, columns], float32, bfloat16 or float16, as it is, filled up with columns of zeros to
    whole blocks.
    """
    kind = NUMBERS[weight.dtype]
    weight = F.pad(weight, (0, -weight.shape[1] % FORMATS[kind].numbers)).contiguous()
    return BlockWeight(kind, weight.view(torch.uint8), weight.shape[1])


def unpack_rows(runner: Runner, weight: BlockWeight, out: Tensor) -> None:
    """Write a weight's numbers to `out` [rows, columns], float32 or bfloat16, of contiguous rows."""
    stage = runner.compiled(build_unpack, weight.kind, KINDS[out.dtype])
    _run_rows(runner, stage, weight, out)


def multiply_vector(runner: Runner, weight: BlockWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    """weight @ x + bias: float32 [rows], for a vector as long as the weight's rows, or shorter where the rest
    of them is zero. bias: float32 [rows].
    """
    vector, out = torch.zeros(weight.columns), torch.empty(weight.rows)
    vector[: len(x)] = x
    records = products(runner, [(weight, bias, out)])
    stage = runner.compiled(build_multiply)
    runner.run((stage, int(records["tasks"].sum()), records.ctypes.data, vector.data_ptr(), 0))
    return out


def multiply_each(runner: Runner, weights: Sequence[BlockWeight], x: Tensor) -> Tensor:
    """The products of weights of as many columns with one vector, one behind the other: float32."""
    vector, out = torch.zeros(weights[0].columns), torch.empty(sum(weight.rows for weight in weights))
    vector[: len(x)] = x
    parts = out.split([weight.rows for weight in weights])
    records = products(runner, [(weight, None, part) for weight, part in zip(weights, parts, strict=True)])
    stage = runner.compiled(build_multiply)
    runner.run((stage, int(records["tasks"].sum()), records.ctypes.data, vector.data_ptr(), 0))
    return out


def add_products(runner: Runner, weights: Sequence[BlockWeight], rows: Tensor) -> Tensor:
    """The sum of the products of weights, all of one shape, with a row each: float32 [outputs]."""
    vectors = torch.zeros(len(rows), weights[0].columns)
    vectors[:, : rows.shape[1]] = rows
    out = torch.zeros(weights[0].rows)
    records = products(runner, [(weight, None, out) for weight in weights], add=True)
    stage = runner.compiled(build_multiply)
    runner.run(
        *(
            (stage, int(records["tasks"][at]), records[at:].ctypes.data, vector.data_ptr(), 0)
            for at, vector in enumerate(vectors)
        )
    )
    return out


def products(
    runner: Runner,
    parts: Sequence[tuple[BlockWeight, Tensor | None, Tensor]],
    *,
    add: bool = False,
    factor: float = 1.0,
    vectors: int = 1,
    x_step: int = 0,
) -> np.ndarray:
    """Records of products with one vector: (weight, bias or None, out) each, but for the weight all float32
    [rows]. They are multiplied by a factor and written to out, or added to it. Or with several vectors,
    x_step numbers apart, of which there are a whole number of TILEs in memory; then out is [vectors, rows].
    """
    records = np.zeros(len(parts), PRODUCT)
    for record, (weight, bias, out) in zip(records, parts, strict=True):
        form = FORMATS[weight.kind]
        share = rows_of_task(runner, weight.rows)
        record["function"] = runner.compiled(build_product, weight.kind)
        record["data"], record["row_bytes"] = weight.data.data_ptr(), weight.data.stride(0)
        record["blocks"], record["columns"] = weight.columns // form.numbers, weight.columns
        record["rows"], record["bias"] = weight.rows, 0 if bias is None else bias.data_ptr()
        record["out"], record["add"], record["factor"] = out.data_ptr(), add, factor
        record["vectors"], record["x_step"] = vectors, x_step * out.itemsize
        if vectors > 1:
            record["several"] = runner.compiled(build_products, weight.kind)
            record["out_step"] = out.stride(0) * out.itemsize
        record["share"], record["tasks"] = share, -(-weight.rows // share)
    return records


def rows_of_task(runner: Runner, rows: int, slots: int = 1) -> int:
    """Rows of a weight that one task multiplies, where `slots` weights are multiplied at a time."""
    share = -(-rows * slots // (TASKS_PER_THREAD * runner.threads))
    return min(share + share % 2, rows)  # they are multiplied two at a time


def linear(runner: Runner, weight: BlockWeight, x: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """x weight^T + bias for many rows x [N, columns or fewer], in x's dtype, float32 or bfloat16. Blocks of
    the weight are unpacked to `block`, a vector of the same dtype as long as a row of the weight, or longer.
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


def _run_rows(runner: Runner, stage: int, weight: BlockWeight, numbers: Tensor) -> None:
    """Run a stage from a weight to rows of numbers, or from them to it."""
    record = np.zeros(1, ROWS)
    share = -(-weight.rows // (TASKS_PER_THREAD * runner.threads))
    record[0] = (
        weight.data.data_ptr(), weight.data.stride(0), weight.columns // FORMATS[weight.kind].numbers,
        weight.rows, numbers.data_ptr(), numbers.stride(0), share,
    )  # fmt: skip
    runner.run((stage, -(-weight.rows // share), record.ctypes.data, 0, 0))
