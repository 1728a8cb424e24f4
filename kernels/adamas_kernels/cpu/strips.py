"""Products of weights of codes and many rounded rows, for CPUs that multiply bytes faster than floats.

A strip is LANES rows of a weight. Its codes are laid out so that a vector holds four neighbouring codes of
each row. LANES codes of all rows form a cell, after which integer sums are converted to floats together. A
task does one strip: it lays the strip out in its own memory and multiplies it by all vectors.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.formats import FORMATS, CodeFormat
from adamas_kernels.cpu.lanes import F32, FLOATS, I32, LANES, NUMBERS, splat, splat_value, store
from adamas_kernels.cpu.records import floats_at, strips_at
from adamas_kernels.cpu.rounding import (
    COLUMN,
    COLUMNS,
    GROUPS,
    NEGATED_AT,
    SCALES_AT,
    SIZE,
    SUMS_AT,
    place_of,
)
from adamas_kernels.cpu.rows import BYTE, I64, add_columns, as_multiplied, fused, groups_of, reader, vector_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.vectors import HAS_DOTS, HAS_PAIRS

CODES = 4 * LANES * COLUMNS  # bytes of a cell's codes
FACTORS_AT, MINIMUMS_AT, CELL = CODES, CODES + 4 * LANES, CODES + 8 * LANES
ZERO = np.float32(0)


def multiplies(form: str) -> bool:
    """Whether this CPU has fast byte products for a type."""
    described = FORMATS[form]
    if not isinstance(described, CodeFormat):
        return False
    return HAS_DOTS or (HAS_PAIRS and described.most is not None)


@njit
def _within(group):
    """Bytes from the start of a rounded vector to the first numbers of a group."""
    return group // GROUPS * SIZE + 4 * place_of(group % GROUPS)


@intrinsic(prefer_literal=True)
def lay_out(typing_context, form, block, cells, row):
    """Write the block at one address to a row of the cells at another."""

    def emit(context, builder, sig, args):
        _, address, cells, row = args
        kind = FORMATS[form.literal_value]
        block = kind.block(reader(builder, address))
        row_at = builder.add(cells, builder.shl(row, ir.Constant(I64, 2)))

        def put(value, at):
            place = builder.inttoptr(builder.add(row_at, ir.Constant(I64, at)), value.type.as_pointer())
            builder.store(value, place).align = 4

        for group in range(kind.numbers // LANES):
            lane = ir.Constant(I32, group)
            put(builder.extract_element(block.scales, lane), group * CELL + FACTORS_AT)
            if block.minimums is not None:
                put(builder.extract_element(block.minimums, lane), group * CELL + MINIMUMS_AT)
        for piece, code in enumerate(block.pieces):
            codes = as_multiplied(builder, kind, code())
            words = builder.bitcast(codes, ir.VectorType(I32, codes.type.count // 4))
            for at, group in enumerate(groups_of(kind, piece)):
                for column in range(COLUMNS):
                    word = builder.extract_element(words, ir.Constant(I32, at * COLUMNS + column))
                    put(word, group * CELL + column * 4 * LANES)
        return context.get_dummy_value()

    return types.void(form, types.int64, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def dot_cell(typing_context, form, total, cell, x):
    """total plus a cell's products with LANES numbers of a rounded vector, one lane per row of the weight.

    x: the address of the first of these numbers.
    """

    def emit(context, builder, sig, args):
        _, total, cell, x = args
        kind = FORMATS[form.literal_value]

        def every(at, element):
            place = builder.add(x, ir.Constant(I64, at))
            value = builder.load(builder.inttoptr(place, element.as_pointer()))
            value.align = 4
            return splat_value(builder, value)

        columns = [vector_at(builder, cell, 4 * LANES * at, BYTE, 4 * LANES) for at in range(COLUMNS)]
        numbers = [
            builder.bitcast(every(COLUMN * at, I32), ir.VectorType(BYTE, 4 * LANES)) for at in range(COLUMNS)
        ]
        sums = add_columns(builder, kind, columns, numbers, every(NEGATED_AT, I32))
        scaled = builder.fmul(builder.sitofp(sums, NUMBERS), vector_at(builder, cell, FACTORS_AT, F32, LANES))
        total = fused(builder, scaled, every(SCALES_AT, F32), total)
        if kind.adds:
            minimums = vector_at(builder, cell, MINIMUMS_AT, F32, LANES)
            total = fused(builder, minimums, every(SUMS_AT, F32), total)
        return total

    return FLOATS(form, total, types.int64, types.int64), emit


@njit
def put_lanes(out, at, lanes, count):
    """Write the first `count` lanes."""
    if count == LANES:
        store(out, at, lanes)
        return
    held = np.empty(LANES, np.float32)
    store(held, 0, lanes)
    for lane in range(count):
        out[at + lane] = held[lane]


@lru_cache(maxsize=None, typed=True)
def build_strips(form: str) -> int:
    """Compile the stage that multiplies strips by all rows, see STRIPS; one strip per task."""
    stamp = source_stamp()
    size = FORMATS[form].size
    cells_of_block = FORMATS[form].numbers // LANES

    def strip_task(task, thread, address, unused, unused_too):
        _ = stamp
        strips = strips_at(address)[0]
        first = task * LANES
        count, groups = min(LANES, strips.outputs - first), strips.blocks * cells_of_block
        memory = np.empty(groups * CELL + CELL, np.uint8)
        cells = memory.ctypes.data + (-memory.ctypes.data) % (4 * LANES)
        for row in range(LANES):
            data = strips.data + (first + min(row, count - 1)) * strips.row_bytes
            for at in range(strips.blocks):
                lay_out(form, data + at * size, cells + at * cells_of_block * CELL, row)
        out, step = floats_at(strips.out), strips.rounded_step
        row = 0
        while row + 4 <= strips.rows:
            x = strips.rounded + row * step
            a = b = c = d = splat(ZERO)
            for group in range(groups):
                cell, numbers = cells + group * CELL, x + _within(group)
                a = dot_cell(form, a, cell, numbers)
                b = dot_cell(form, b, cell, numbers + step)
                c = dot_cell(form, c, cell, numbers + 2 * step)
                d = dot_cell(form, d, cell, numbers + 3 * step)
            at = row * strips.out_step + first
            put_lanes(out, at, a, count)
            put_lanes(out, at + strips.out_step, b, count)
            put_lanes(out, at + 2 * strips.out_step, c, count)
            put_lanes(out, at + 3 * strips.out_step, d, count)
            row += 4
        while row < strips.rows:
            x = strips.rounded + row * step
            a = splat(ZERO)
            for group in range(groups):
                a = dot_cell(form, a, cells + group * CELL, x + _within(group))
            put_lanes(out, row * strips.out_step + first, a, count)
            row += 1
        memory[0] = 0  # numba frees an array after its last use, and uses of its address do not count

    return stage(strip_task, STAGE)
