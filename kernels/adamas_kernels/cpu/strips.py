"""Products of weights of codes and many rounded rows, for CPUs that multiply bytes faster than floats.

A strip is LANES rows of a weight. Its codes are laid out so that a vector holds four neighbouring codes of
each row. LANES codes of all rows form a cell, after which integer sums are converted to floats together.
Cells lie in the order of a rounded vector's groups, and zeros fill up its last half of a block. A task does
one strip: it lays the strip out in its own memory and multiplies it by all vectors.

Instructions of x86 multiply unsigned bytes by signed ones. Here codes are signed and rounded numbers higher
by RAISE: then AVX2 sums 8 products with codes of up to 6 bits in 16 bits, and the weight alone decides by how
much sums are too high.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from adamas_kernels.cpu.build import njit, source_stamp, stage
from adamas_kernels.cpu.features import FEATURES, IS_X86
from adamas_kernels.cpu.formats import FORMATS, CodeFormat
from adamas_kernels.cpu.lanes import F32, I32, LANES, NUMBERS, WORDS, fused, splat_value
from adamas_kernels.cpu.records import floats_at, strips_at
from adamas_kernels.cpu.rounding import COLUMN, COLUMNS, GROUPS, SCALES_AT, SIZE, SUMS_AT, place_of
from adamas_kernels.cpu.rows import BYTE, I64, groups_of, reader, vector_at
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.vectors import HAS_DOTS, HAS_PAIRS, excess, raised_dots

# Rounded vectors that share a read of a cell. AVX2's 16 registers hold the halves of 3 sums, of integers and
# of floats, and what is multiplied.
TOKENS = 3 if IS_X86 and "avx512f" not in FEATURES else 4
HALF = GROUPS // 2  # groups that are neighbours in a rounded vector
# Bytes of a cell: codes, int8 [COLUMNS, LANES, 4]; for each row a float32 factor, the start of its sums, and
# a float32 minimum.
FACTORS_AT = 4 * LANES * COLUMNS
STARTS_AT, MINIMUMS_AT = FACTORS_AT + 4 * LANES, FACTORS_AT + 8 * LANES
LINE = 64  # bytes


def multiplies(form: str) -> bool:
    """Whether this CPU has fast byte products for a type."""
    described = FORMATS[form]
    if not isinstance(described, CodeFormat):
        return False
    return HAS_DOTS or (HAS_PAIRS and described.most is not None)


def _size(kind: CodeFormat) -> int:
    """Bytes of a cell."""
    return MINIMUMS_AT + (4 * LANES if kind.adds else 0)


@intrinsic(prefer_literal=True)
def lay_out(typing_context, form, block, cells, row):
    """Write the block at one address to a row of the cells at another, in the order of a rounded vector."""

    def emit(context, builder, sig, args):
        _, address, cells, row = args
        kind = FORMATS[form.literal_value]
        block = kind.block(reader(builder, address))
        row_at = builder.add(cells, builder.shl(row, ir.Constant(I64, 2)))

        def put(value, group, at):
            at += place_of.py_func(group) * _size(kind)
            place = builder.inttoptr(builder.add(row_at, ir.Constant(I64, at)), value.type.as_pointer())
            builder.store(value, place).align = 4

        for group in range(kind.numbers // LANES):
            lane = ir.Constant(I32, group)
            put(builder.extract_element(block.scales, lane), group, FACTORS_AT)
            if kind.adds:
                put(builder.extract_element(block.minimums, lane), group, MINIMUMS_AT)
        for piece, code in enumerate(block.pieces):
            codes = code()
            codes = builder.add(codes, ir.Constant(codes.type, [kind.least & 255] * codes.type.count))
            words = builder.bitcast(codes, ir.VectorType(I32, codes.type.count // 4))
            for at, group in enumerate(groups_of(kind, piece)):
                for column in range(COLUMNS):
                    word = builder.extract_element(words, ir.Constant(I32, at * COLUMNS + column))
                    put(word, group, column * 4 * LANES)
        return context.get_dummy_value()

    return types.void(form, types.int64, types.int64, types.int64), emit


def _codes_of(builder, cell):
    """A cell's codes, one vector for each column."""
    return [vector_at(builder, cell, 4 * LANES * at, BYTE, 4 * LANES) for at in range(COLUMNS)]


@intrinsic
def put_starts(typing_context, cell):
    """Write the starts of a cell's sums, see `excess`."""

    def emit(context, builder, sig, args):
        found = excess(builder, _codes_of(builder, args[0]))
        place = builder.add(args[0], ir.Constant(I64, STARTS_AT))
        builder.store(found, builder.inttoptr(place, WORDS.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic(prefer_literal=True)
def multiply_cells(typing_context, form, tokens, cells, halves, x, step, out, out_step):
    """Write the products of HALF `halves` cells and `tokens` rounded vectors: float32 [tokens, LANES].

    cells, x, out: addresses. step, out_step: bytes from one vector to the next.
    """

    def emit(context, builder, sig, args):
        cells, halves, x, step, out, out_step = args[2:]
        kind, count = FORMATS[form.literal_value], tokens.literal_value
        totals = [cgutils.alloca_once(builder, NUMBERS) for _ in range(count)]
        for total in totals:
            builder.store(ir.Constant(NUMBERS, None), total)
        with cgutils.for_range(builder, halves) as half:
            first = builder.add(cells, builder.mul(half.index, ir.Constant(I64, HALF * _size(kind))))
            block = builder.mul(builder.lshr(half.index, ir.Constant(I64, 1)), ir.Constant(I64, SIZE))
            odd = builder.and_(half.index, ir.Constant(I64, 1))
            numbers = builder.add(builder.add(x, block), builder.mul(odd, ir.Constant(I64, 4 * HALF)))
            with cgutils.for_range(builder, ir.Constant(I64, HALF // 2)) as place:
                cell = builder.add(first, builder.mul(place.index, ir.Constant(I64, _size(kind))))
                at = [builder.add(numbers, builder.shl(place.index, ir.Constant(I64, 2)))]
                for _ in range(count - 1):
                    at.append(builder.add(at[-1], step))
                _add_pair(
                    builder, kind, totals, [_Cell(builder, kind, cell, at, i * HALF // 2) for i in range(2)]
                )
        for total in totals:
            place = builder.inttoptr(out, NUMBERS.as_pointer())
            builder.store(builder.load(total), place).align = 4
            out = builder.add(out, out_step)
        return context.get_dummy_value()

    return types.void(form, tokens, *[types.int64] * 6), emit


class _Cell:
    """Emits reads of a cell and of the rounded numbers that it meets, `after` places after those at these
    addresses.
    """

    def __init__(self, builder, kind, cell, at, after):
        self._builder, self._at = builder, at
        self._cell, self._after = builder.add(cell, ir.Constant(I64, after * _size(kind))), 4 * after

    def vector(self, at):
        """LANES floats of the cell, one for each row of the weight."""
        return vector_at(self._builder, self._cell, at, F32, LANES)

    def every(self, at):
        """A float of each rounded vector in all lanes, emitted one by one."""
        return (self._splat(address, at, F32) for address in self._at)

    def _splat(self, address, at, element):
        place = self._builder.add(address, ir.Constant(I64, at + self._after))
        value = self._builder.load(self._builder.inttoptr(place, element.as_pointer()))
        value.align = 4
        return splat_value(self._builder, value)

    def sums(self):
        """The sums of products with each rounded vector, as floats."""
        columns = [
            [partial(self._splat, address, COLUMN * column, I32) for address in self._at]
            for column in range(COLUMNS)
        ]
        start = vector_at(self._builder, self._cell, STARTS_AT, I32, LANES)
        found = raised_dots(self._builder, _codes_of(self._builder, self._cell), columns, start)
        return [self._builder.sitofp(x, NUMBERS) for x in found]


def _add_pair(builder, kind, totals, pair):
    """Add to each rounded vector's total what two cells of 32 neighbouring codes make."""

    def add(a, b):
        for x, y, total in zip(a, b, totals, strict=True):
            builder.store(fused(builder, x, y, builder.load(total)), total)

    if kind.scaled == LANES:
        for cell in pair:
            factors, sums = cell.vector(FACTORS_AT), cell.sums()
            add((builder.fmul(x, factors) for x in sums), cell.every(SCALES_AT))
            if kind.adds:
                add([cell.vector(MINIMUMS_AT)] * len(totals), cell.every(SUMS_AT))
        return
    one, other = pair  # with the same factors and minimums
    scaled = [builder.fmul(*both) for both in zip(one.sums(), one.every(SCALES_AT), strict=True)]
    more = zip(other.sums(), other.every(SCALES_AT), scaled, strict=True)
    scaled = [fused(builder, *three) for three in more]
    add(scaled, [one.vector(FACTORS_AT)] * len(totals))
    if kind.adds:
        both = zip(one.every(SUMS_AT), other.every(SUMS_AT), strict=True)
        add((builder.fadd(x, y) for x, y in both), [one.vector(MINIMUMS_AT)] * len(totals))


@njit
def put_rows(found, tokens, count, out, at, step):
    """Write the first `count` of each LANES numbers to a row of `out`, one row per token."""
    for token in range(tokens):
        for row in range(count):
            out[at + token * step + row] = found[token * LANES + row]


@lru_cache(maxsize=None, typed=True)
def build_strips(form: str) -> int:
    """Compile the stage that multiplies strips by all rounded rows, see STRIPS; one strip per task."""
    stamp = source_stamp()
    kind = FORMATS[form]
    assert isinstance(kind, CodeFormat)
    size, cell, groups_of_block = kind.size, _size(kind), kind.numbers // LANES

    def strip_task(task, thread, address, unused, unused_too):
        _ = stamp
        strips = strips_at(address)[0]
        first = task * LANES
        count, halves = min(LANES, strips.outputs - first), -(-strips.blocks * groups_of_block // HALF)
        memory = np.empty(halves * HALF * cell + LINE, np.uint8)
        memory[-HALF * cell - LINE :] = 0  # cells after the last block stay zeros
        cells = memory.ctypes.data + (-memory.ctypes.data) % LINE
        for row in range(LANES):
            data = strips.data + (first + min(row, count - 1)) * strips.row_bytes
            for at in range(strips.blocks):
                group = at * groups_of_block
                place = group // GROUPS * GROUPS + place_of(group % GROUPS)
                lay_out(form, data + at * size, cells + place * cell, row)
        for at in range(halves * HALF):
            put_starts(cells + at * cell)
        found = np.empty(TOKENS * LANES, np.float32)
        out, step, token = floats_at(strips.out), strips.rounded_step, 0
        while token < strips.rows:
            tokens, x = min(TOKENS, strips.rows - token), strips.rounded + token * step
            at = token * strips.out_step + first
            if tokens == TOKENS and count == LANES:
                multiply_cells(form, TOKENS, cells, halves, x, step, strips.out + 4 * at, 4 * strips.out_step)
            else:
                for i in range(tokens):
                    place = found.ctypes.data + 4 * i * LANES
                    multiply_cells(form, 1, cells, halves, x + i * step, step, place, 0)
                put_rows(found, tokens, count, out, at, strips.out_step)
            token += tokens
        memory[0] = found[0] = 0  # numba frees arrays after their last use; addresses do not count

    return stage(strip_task, STAGE)
