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
from adamas_kernels.cpu.lanes import F32, FLOATS, I32, LANES, NUMBERS, WORDS, splat, splat_value, store
from adamas_kernels.cpu.records import floats_at, strips_at
from adamas_kernels.cpu.rounding import NUMBERS as ROUNDED_NUMBERS
from adamas_kernels.cpu.rounding import SCALES_AT, SIZE, SUMS_AT
from adamas_kernels.cpu.rows import BYTE, I64, added_to_codes, fused, reader, vector_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.vectors import HAS_DOTS, HAS_PAIRS, HAS_SIGNED_DOTS, dot_columns

COLUMNS = LANES // 4  # vectors of codes in a cell
CODES = 4 * LANES * COLUMNS  # bytes of a cell's codes
FACTORS_AT, ADDED_AT, CELL = CODES, CODES + 4 * LANES, CODES + 8 * LANES
GROUPS = ROUNDED_NUMBERS // LANES  # in a block of a rounded vector
ZERO = np.float32(0)


def multiplies(form: str) -> bool:
    """Whether this CPU has fast byte products for a type."""
    described = FORMATS[form]
    if not isinstance(described, CodeFormat):
        return False
    return HAS_DOTS or (HAS_PAIRS and described.most is not None)


def _unsigned(kind: CodeFormat) -> bool:
    """Whether int8 codes must be shifted to unsigned."""
    return kind.most is None and not HAS_SIGNED_DOTS


@intrinsic(prefer_literal=True)
def lay_out(typing_context, form, block, cells, row):
    """Write the block at one address to a row of the cells at another."""

    def emit(context, builder, sig, args):
        _, address, cells, row = args
        kind = FORMATS[form.literal_value]
        block = kind.block(reader(builder, address, kind.size))
        row_at = builder.add(cells, builder.shl(row, ir.Constant(I64, 2)))

        def put(value, at):
            place = builder.inttoptr(builder.add(row_at, ir.Constant(I64, at)), value.type.as_pointer())
            builder.store(value, place).align = 4

        added = added_to_codes(builder, kind, block, 128 if _unsigned(kind) else 0)
        for group in range(kind.numbers // LANES):
            lane = ir.Constant(I32, group)
            put(builder.extract_element(block.scales, lane), group * CELL + FACTORS_AT)
            least = ir.Constant(F32, 0.0) if added is None else builder.extract_element(added, lane)
            put(least, group * CELL + ADDED_AT)
        word = 0
        for piece in block.pieces:
            codes = piece()
            if _unsigned(kind):
                codes = builder.xor(codes, ir.Constant(codes.type, [128] * codes.type.count))
            count = codes.type.count // 4
            words = builder.bitcast(codes, ir.VectorType(I32, count))
            for at in range(count):
                cell, column = divmod(word, COLUMNS)
                put(builder.extract_element(words, ir.Constant(I32, at)), cell * CELL + column * 4 * LANES)
                word += 1
        return context.get_dummy_value()

    return types.void(form, types.int64, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def dot_cell(typing_context, form, total, cell, codes, floats):
    """total plus a cell's products with LANES numbers of a rounded vector, one lane per row of the weight.

    codes, floats: the addresses of the numbers, and of their scale minus SCALES_AT.
    """

    def emit(context, builder, sig, args):
        _, total, cell, codes, floats = args
        kind = FORMATS[form.literal_value]

        def every(address, at, element):
            place = builder.add(address, ir.Constant(I64, at))
            value = builder.load(builder.inttoptr(place, element.as_pointer()))
            value.align = 4
            return splat_value(builder, value)

        columns = [vector_at(builder, cell, 4 * LANES * at, BYTE, 4 * LANES) for at in range(COLUMNS)]
        numbers = [
            builder.bitcast(every(codes, 4 * at, I32), ir.VectorType(BYTE, 4 * LANES))
            for at in range(COLUMNS)
        ]
        sums = dot_columns(builder, columns, numbers, kind.most or 255)
        assert sums.type == WORDS
        scaled = builder.fmul(builder.sitofp(sums, NUMBERS), vector_at(builder, cell, FACTORS_AT, F32, LANES))
        total = fused(builder, scaled, every(floats, SCALES_AT, F32), total)
        if kind.adds or kind.least or _unsigned(kind):
            added = vector_at(builder, cell, ADDED_AT, F32, LANES)
            total = fused(builder, added, every(floats, SUMS_AT, F32), total)
        return total

    return FLOATS(form, total, types.int64, types.int64, types.int64), emit


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
    numbers, size = FORMATS[form].numbers, FORMATS[form].size
    cells_of_block = numbers // LANES

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
                cell = cells + group * CELL
                block, within = (group // GROUPS) * SIZE, (group % GROUPS) * 4
                codes, floats = x + block + 4 * within, x + block + within
                a = dot_cell(form, a, cell, codes, floats)
                b = dot_cell(form, b, cell, codes + step, floats + step)
                c = dot_cell(form, c, cell, codes + 2 * step, floats + 2 * step)
                d = dot_cell(form, d, cell, codes + 3 * step, floats + 3 * step)
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
                block, within = (group // GROUPS) * SIZE, (group % GROUPS) * 4
                codes, floats = x + block + 4 * within, x + block + within
                a = dot_cell(form, a, cells + group * CELL, codes, floats)
            put_lanes(out, row * strips.out_step + first, a, count)
            row += 1
        memory[0] = 0  # numba frees an array after its last use, and uses of its address do not count

    return stage(strip_task, STAGE)
