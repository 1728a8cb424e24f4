"""Rows of blocks: their products with a vector, and their numbers, for each name of `formats.FORMATS`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from adamas_kernels.cpu.build import source_stamp, stage
from adamas_kernels.cpu.floats import Bfloat16, Float32
from adamas_kernels.cpu.formats import FORMATS, Reader
from adamas_kernels.cpu.lanes import (
    I32,
    LANES,
    NUMBERS,
    load,
    round_to_bfloat16,
    splat,
    sum_lanes,
)
from adamas_kernels.cpu.records import floats_at, products_at, rows_at
from adamas_kernels.cpu.tasks import STAGE

ZERO = np.float32(0)
LINE = 64  # bytes
TILE = 4  # vectors that a block is read once for
AHEAD = 8192  # bytes: rows are short, and behind each the CPU would begin anew to see what comes next
I64, BYTE = ir.IntType(64), ir.IntType(8)


def _fused(builder, a, b, c):
    """a b + c of LANES floats."""
    shape = ir.FunctionType(NUMBERS, [NUMBERS] * 3)
    function = cgutils.get_or_insert_function(builder.module, shape, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [a, b, c])


def _splat_lane(builder, vector, lane):
    order = ir.Constant(ir.VectorType(I32, LANES), [lane] * LANES)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), order)


def _lanes_of(context, builder, array_type, array, index, vectors=0):
    """LANES floats of an array, so many vectors behind an index."""
    data = context.make_array(array_type)(context, builder, array).data
    place = builder.gep(data, [builder.add(index, ir.Constant(I64, vectors * LANES))])
    value = builder.load(builder.bitcast(place, NUMBERS.as_pointer()))
    value.align = 4
    return value


def _fetch_ahead(builder, address, size):
    """Have the bytes that lie AHEAD of a block brought into the L1 cache."""
    pointer = BYTE.as_pointer()
    shape = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
    for at in range(0, size, LINE):
        place = builder.inttoptr(builder.add(address, ir.Constant(I64, AHEAD + at)), pointer)
        builder.call(function, [place, *(ir.Constant(I32, x) for x in (0, 3, 1))])  # read, keep, data


def _block(builder, form, address):
    place = builder.inttoptr(address, BYTE.as_pointer())
    return FORMATS[form.literal_value].block(Reader(builder, place))


@intrinsic(prefer_literal=True)
def dot_block(typing_context, form, totals, block, x, at, step, sums, sums_at, sums_step):
    """Each of the totals plus the products of the numbers of the block at an address with x from x[at] on, in
    LANES parts, and for the next total with x from x[at + step] on: all of them as one alone would be.

    sums: of each LANES numbers of x, which belong to the block from sums[sums_at] on, then sums_step further.
    """

    def emit(context, builder, sig, args):
        _, totals, address, x, at, step, sums, sums_at, sums_step = args
        totals = cgutils.unpack_tuple(builder, totals)
        _fetch_ahead(builder, address, FORMATS[form.literal_value].size)
        block = _block(builder, form, address)
        for first in range(0, len(block.codes), block.shared):
            parts = [None] * len(totals)
            for piece in range(first, first + block.shared):
                codes, place = block.codes[piece](), at
                for i, total in enumerate(totals):
                    numbers = _lanes_of(context, builder, sig.args[3], x, place, piece)
                    if block.scales is None:
                        totals[i] = _fused(builder, codes, numbers, total)
                    elif parts[i] is None:
                        parts[i] = builder.fmul(codes, numbers)
                    else:
                        parts[i] = _fused(builder, codes, numbers, parts[i])
                    place = builder.add(place, step)
            if block.scales is not None:
                scale = _splat_lane(builder, block.scales, first)
                totals = [_fused(builder, part, scale, x) for part, x in zip(parts, totals, strict=True)]
        if block.offsets is not None:
            for i, total in enumerate(totals):
                numbers = _lanes_of(context, builder, sig.args[6], sums, sums_at)
                totals[i] = _fused(builder, block.offsets, numbers, total)
                sums_at = builder.add(sums_at, sums_step)
        return context.make_tuple(builder, sig.return_type, totals)

    place = types.int64
    return totals(form, totals, place, x, place, place, sums, place, place), emit


@intrinsic(prefer_literal=True)
def unpack_block(typing_context, form, block, out, kind):
    """Write the numbers of the block at an address to another, as float32 or bfloat16."""

    def emit(context, builder, sig, args):
        read = _block(builder, form, args[1])
        for at, code in enumerate(read.codes):
            numbers = code()
            if read.offsets is not None:
                scale, offset = (_splat_lane(builder, x, at) for x in (read.scales, read.offsets))
                numbers = _fused(builder, numbers, scale, offset)
            elif read.scales is not None:
                numbers = builder.fmul(numbers, _splat_lane(builder, read.scales, at))
            if kind.instance_class is Bfloat16:
                numbers = round_to_bfloat16(builder, numbers)
            place = builder.inttoptr(args[2], numbers.type.as_pointer())
            builder.store(numbers, builder.gep(place, [ir.Constant(I64, at)])).align = 2
        return context.get_dummy_value()

    return types.void(form, types.int64, types.int64, kind), emit


@njit
def whole_lanes(count):
    """The least whole number of LANES that is not less."""
    return -(-count // LANES) * LANES


@njit
def sums_of_lanes(x, columns):
    """The sum of each LANES numbers of x, and zeros for as many more: a block may have fewer than LANES."""
    sums = np.zeros(columns // LANES + LANES, np.float32)
    for at in range(columns // LANES):
        sums[at] = sum_lanes(load(x, at * LANES))
    return sums


@lru_cache(maxsize=None, typed=True)
def build_product(form: str) -> int:
    """Compile rows(first, last, product, x, out): some rows' products with x, from `out` on; addresses."""
    stamp = source_stamp()
    numbers, size, adds = FORMATS[form].numbers, FORMATS[form].size, FORMATS[form].adds
    pieces = numbers // LANES

    def rows(first, last, product_at, x_at, out_at):
        _ = stamp
        product = products_at(product_at)[0]
        x, out = floats_at(x_at), floats_at(out_at)
        sums = sums_of_lanes(x, product.columns if adds else 0)
        step = product.row_bytes
        for row in range(first, last, 2):  # two at a time, which share what is read of x
            block = product.data + row * step
            other = block + step if row + 1 < last else block
            a = b = (splat(ZERO),)
            for at in range(product.blocks):
                a = dot_block(form, a, block + at * size, x, at * numbers, 0, sums, at * pieces, 0)
                b = dot_block(form, b, other + at * size, x, at * numbers, 0, sums, at * pieces, 0)
            out[row - first] = sum_lanes(a[0])
            if row + 1 < last:
                out[row + 1 - first] = sum_lanes(b[0])

    return stage(rows, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_products(form: str) -> int:
    """Compile the same for TILE vectors, `product.x_step` bytes apart from x on: out is [TILE, rows, up to a
    whole number of LANES].
    """
    stamp = source_stamp()
    numbers, size, adds = FORMATS[form].numbers, FORMATS[form].size, FORMATS[form].adds
    pieces = numbers // LANES

    def rows(first, last, product_at, x_at, out_at):
        _ = stamp
        product = products_at(product_at)[0]
        x, out = floats_at(x_at), floats_at(out_at)
        step, width = product.x_step // 4, whole_lanes(last - first)
        sums_step = product.columns // LANES + LANES if adds else 0
        sums = np.zeros(TILE * sums_step, np.float32)
        if adds:
            for i in range(TILE):
                sums[i * sums_step : (i + 1) * sums_step] = sums_of_lanes(x[i * step :], product.columns)
        for row in range(first, last):
            block = product.data + row * product.row_bytes
            totals = (splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO))
            for at in range(product.blocks):
                totals = dot_block(
                    form, totals, block + at * size, x, at * numbers, step, sums, at * pieces, sums_step
                )
            for i in range(TILE):
                out[i * width + row - first] = sum_lanes(totals[i])

    return stage(rows, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_unpack(form: str, kind: Float32 | Bfloat16) -> int:
    """Compile the stage that unpacks rows of blocks, `share` to a task."""
    stamp = source_stamp()
    numbers, size = FORMATS[form].numbers, FORMATS[form].size
    itemsize = 4 if isinstance(kind, Float32) else 2

    def unpack_task(task, thread, rows_address, unused, unused_too):
        _ = stamp
        rows = rows_at(rows_address)[0]
        first = task * rows.share
        for row in range(first, min(first + rows.share, rows.rows)):
            block, out = rows.data + row * rows.row_bytes, rows.numbers + row * rows.stride * itemsize
            for at in range(rows.blocks):
                unpack_block(form, block + at * size, out + at * numbers * itemsize, kind)

    return stage(unpack_task, STAGE)
