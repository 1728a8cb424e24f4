"""Linear layers with packed weights: pack, unpack for prefill, and multiply with a vector."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.cpu.floats import KINDS
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.packing import UNPACKED_STRIPS, build_pack, build_unpack
from adamas_kernels.cpu.records import PACKING, PRODUCT
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.weights import GROUP, STRIP, PackedWeight, allocate

LARGEST_SCALE = 14  # scales and offsets are at most 2^14 units; float16 ends below 2^16
TRIED_STRIPS = 32  # that show whether a weight is on 4-bit grids
MISFITS = 1e-3  # share of groups off the grid with which 4 bits still lose nothing that counts
TASKS_PER_THREAD = 8  # so that threads end together
BLOCK = 1 << 24  # weights that are unpacked at a time


def pack(runner: Runner, weight: Tensor) -> PackedWeight:
    """The packed form of a weight [rows, columns], float32, bfloat16 or float16: of 4 bits where that loses
    nothing, else of 8.
    """
    largest = float(weight.abs().amax())
    unit = 2.0 ** (math.ceil(math.log2(largest)) - LARGEST_SCALE) if largest > 0 else 1.0
    if _pack(runner, weight[: TRIED_STRIPS * STRIP], 4, unit)[1] <= MISFITS:
        packed, misfits = _pack(runner, weight, 4, unit)
        if misfits <= MISFITS:
            return packed
    return _pack(runner, weight, 8, unit)[0]


def _pack(runner: Runner, weight: Tensor, bits: int, unit: float) -> tuple[PackedWeight, float]:
    """Packed weight, and the share of its groups whose values are not on its grid."""
    rows, columns = weight.shape
    packed = allocate(rows, columns, bits, unit)
    misfits = np.zeros(1, np.int64)
    record = _packing(packed, weight, misfits)
    stage = runner.compiled(build_pack, KINDS[weight.dtype])
    runner.run((stage, len(packed.codes), record.ctypes.data, 0, 0))
    return packed, int(misfits[0]) / packed.scales.numel()


def unpack_columns(runner: Runner, packed: PackedWeight, target: Tensor) -> None:
    """Write a packed weight's columns to `target`, contiguous [groups * 32, strips * 16]."""
    record = _packing(packed, target, np.zeros(1, np.int64))
    stage = runner.compiled(build_unpack, KINDS[target.dtype])
    runner.run((stage, -(-len(packed.codes) // UNPACKED_STRIPS), record.ctypes.data, 0, 0))


def multiply_vector(runner: Runner, packed: PackedWeight, x: Tensor, bias: Tensor | None) -> Tensor:
    """weight @ x + bias: float32 [rows], for a vector [columns]. bias: float32, filled up to whole strips."""
    vector, out = torch.zeros(packed.codes.shape[1] * GROUP), torch.empty(len(packed.codes) * STRIP)
    vector[: packed.columns] = x
    record = products(runner.threads, [(packed, bias, out)])
    stage = runner.compiled(build_multiply)
    runner.run((stage, int(record["tasks"].sum()), record.ctypes.data, vector.data_ptr(), 0))
    return out[: packed.rows]


def products(
    threads: int, parts: list[tuple[PackedWeight, Tensor | None, Tensor]], *, add: bool = False
) -> np.ndarray:
    """Records of products with one vector: (weight, bias or None, out) each, all float32 and filled up."""
    records = np.zeros(len(parts), PRODUCT)
    for record, (packed, bias, out) in zip(records, parts, strict=True):
        strips = len(packed.codes)
        share = max(1, strips // (TASKS_PER_THREAD * threads))
        for name, value in _described(packed):
            record[name] = value
        record["bias"] = 0 if bias is None else bias.data_ptr()
        record["out"], record["add"] = out.data_ptr(), add
        record["share"], record["tasks"] = share, -(-strips // share)
    return records


def linear(runner: Runner, packed: PackedWeight, x: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """x weight^T + bias for many rows x [N, columns], in x's dtype, unpacking blocks of the weight into
    `block`, a vector of BLOCK numbers or more of the same dtype.
    """
    strips, groups = packed.scales.shape[:2]
    out = x.new_empty(len(x), packed.rows)
    step = max(1, len(block) // (groups * GROUP * STRIP))
    for first in range(0, strips, step):
        part = packed.strips(first, min(strips, first + step))
        columns = block[: groups * GROUP * len(part.codes) * STRIP].view(groups * GROUP, -1)
        unpack_columns(runner, part, columns)
        rows = slice(first * STRIP, first * STRIP + part.rows)
        wanted = columns[: packed.columns, : part.rows]
        if len(part.codes) == strips and part.rows == packed.rows:
            torch.mm(x, wanted, out=out)
        else:
            out[:, rows] = x @ wanted
    return out if bias is None else out.add_(bias[: packed.rows])


def _packing(packed: PackedWeight, numbers: Tensor, misfits: np.ndarray) -> np.ndarray:
    record = np.zeros(1, PACKING)
    for name, value in _described(packed):
        record[name] = value
    record["numbers"], record["stride"] = numbers.data_ptr(), numbers.stride(0)
    record["misfits"] = misfits.ctypes.data
    return record


def _described(packed: PackedWeight) -> list[tuple[str, float]]:
    """The fields that records of a weight have in common."""
    strips, groups = packed.scales.shape[:2]
    offsets = 0 if packed.offsets is None else packed.offsets.data_ptr()
    return [
        ("rows", packed.rows), ("columns", packed.columns), ("strips", strips), ("groups", groups),
        ("codes", packed.codes.data_ptr()), ("scales", packed.scales.data_ptr()), ("offsets", offsets),
        ("unit", packed.unit),
    ]  # fmt: skip
