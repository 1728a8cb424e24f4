"""Rows of blocks: their products with one or a few vectors, and their numbers, for `formats.FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types, typing
from numba.extending import intrinsic

from adamas_kernels.cpu.build import distinct, njit, source_stamp, stage
from adamas_kernels.cpu.floats import Bfloat16, Float32
from adamas_kernels.cpu.formats import FORMATS, CodeFormat, FloatFormat, Reader
from adamas_kernels.cpu.lanes import F32, I32, LANES, NUMBERS, fused, round_to_bfloat16, splat, sum_lanes
from adamas_kernels.cpu.records import floats_at, products_at, rows_at
from adamas_kernels.cpu.rounding import COLUMN, COLUMNS, NEGATED_AT, SCALES_AT, SIZE, SUMS_AT, group_at
from adamas_kernels.cpu.rounding import NUMBERS as ROUNDED_NUMBERS
from adamas_kernels.cpu.tasks import STAGE
from adamas_kernels.cpu.vectors import (
    SHIFT,
    SHIFTS,
    dot_columns,
    filled_up,
    in_order,
    part,
    shifted,
    transposed,
)

ZERO = np.float32(0)
LINE = 64  # bytes
TILE = 4  # vectors that share one read of a block
AHEAD = 4096  # bytes: rows are short, and the CPU's own prefetching would restart after each
L2 = 2  # LLVM's locality hint: the L1 cache has too few outstanding lines for the memory's speed
PIECES = 4  # of codes that are transposed together
WHOLE, HALF = ROUNDED_NUMBERS, ROUNDED_NUMBERS // 2  # numbers of short blocks that are read together
I64, BYTE = ir.IntType(64), ir.IntType(8)


def lanes_of(context, builder, array_type, array, index, vectors=0):
    """LANES floats of an array, `vectors` vectors after an index."""
    data = context.make_array(array_type)(context, builder, array).data
    place = builder.gep(data, [builder.add(index, ir.Constant(I64, vectors * LANES))])
    value = builder.load(builder.bitcast(place, NUMBERS.as_pointer()))
    value.align = 4
    return value


def _fetch_ahead(builder, address, size):
    """Prefetch the bytes that lie AHEAD of a block into the L2 cache."""
    pointer = BYTE.as_pointer()
    shape = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
    for at in range(0, size, LINE):
        place = builder.inttoptr(builder.add(address, ir.Constant(I64, AHEAD + at)), pointer)
        builder.call(function, [place, *(ir.Constant(I32, x) for x in (0, L2, 1))])  # read, data


def reader(builder, *addresses):
    return Reader(builder, *(builder.inttoptr(address, BYTE.as_pointer()) for address in addresses))


@intrinsic(prefer_literal=True)
def dot_floats(typing_context, form, totals, address, x, at, step):
    """Each of the totals plus the products of the floats of the block at an address and x from x[at] on, in
    LANES parts; x advances by `step` numbers per total.
    """

    def emit(context, builder, sig, args):
        _, totals, address, x, at, step = args
        totals = cgutils.unpack_tuple(builder, totals)
        kind = FORMATS[form.literal_value]
        _fetch_ahead(builder, address, kind.size)
        block = kind.block(reader(builder, address))
        none = ir.Constant(NUMBERS, [0.0] * LANES)
        found = list(totals) if block.scale is None else [none] * len(totals)
        for piece, numbers in enumerate(block.numbers):
            read, place = numbers(), at
            for i, total in enumerate(found):
                found[i] = fused(
                    builder, read, lanes_of(context, builder, sig.args[3], x, place, piece), total
                )
                place = builder.add(place, step)
        if block.scale is not None:
            found = [fused(builder, x, block.scale, total) for x, total in zip(found, totals, strict=True)]
        return context.make_tuple(builder, sig.return_type, found)

    return totals(form, totals, types.int64, x, types.int64, types.int64), emit


def vector_at(builder, address, at, element, count):
    """The vector `at` bytes after an address."""
    place = builder.add(address, ir.Constant(I64, at))
    value = builder.load(builder.inttoptr(place, ir.VectorType(element, count).as_pointer()))
    value.align = 1
    return value


def groups_of(kind, piece):
    """The groups of LANES codes in a piece of a block, in order, see `Codes`."""
    if kind.numbers < WHOLE:
        return range(kind.numbers // LANES)
    return [group + 2 * piece for group in (0, 1, 8, 9)]


def _shifts(kind):
    """Whether codes are multiplied as unsigned ones that are SHIFT higher."""
    return SHIFTS and kind.most is None


def as_multiplied(builder, kind, codes):
    """Codes of a block as `add_columns` takes them."""
    return shifted(builder, codes) if _shifts(kind) else codes


def add_columns(builder, kind, columns, numbers, negated):
    """Int32 sums of products of codes and rounded numbers over COLUMNS vectors of each; `negated`: the
    negated sums of these numbers, which make up for codes that are too high.
    """
    most, above = (255, SHIFT) if _shifts(kind) else (kind.most, -kind.least)
    start = builder.mul(negated, ir.Constant(negated.type, [above] * negated.type.count))
    return dot_columns(builder, start, columns, numbers, most)


class _Block:
    """Emits what products need of a block of 256 codes, or of several shorter ones at these addresses, in
    the order of a rounded vector's columns.
    """

    def __init__(self, builder, kind, addresses):
        count = len(addresses)
        if count == 1:
            order, block = range(ROUNDED_NUMBERS // LANES), kind.block(reader(builder, *addresses))
            pieces = [codes() for codes in block.pieces]
        else:
            # As in a long block, a piece has a block of the first half and one of the second.
            each = count // PIECES
            blocks = [piece + PIECES * i for piece in range(PIECES) for i in range(each)]
            order = [2 * at + i for at in blocks for i in range(2)]
            addresses = [addresses[at] for at in blocks]
            block = kind.block(reader(builder, *addresses))
            pieces = [
                kind.block(reader(builder, *addresses[at : at + each])).pieces[0]()
                for at in range(0, count, each)
            ]
        self.groups = len(order)
        lanes = [list(order).index(group_at(place)) for place in range(self.groups)]
        self.scales = in_order(builder, block.scales, lanes)
        self.minimums = None if block.minimums is None else in_order(builder, block.minimums, lanes)
        words = ir.VectorType(I32, self.groups)
        pieces = [builder.bitcast(as_multiplied(builder, kind, piece), words) for piece in pieces]
        size = ir.VectorType(BYTE, 4 * self.groups)
        self.columns = [builder.bitcast(column, size) for column in transposed(builder, pieces)]


def _add_block(builder, kind, block, x, total):
    """total plus the products of a block and the numbers of a rounded vector from an address on."""
    groups = block.groups
    numbers = [vector_at(builder, x, COLUMN * at, BYTE, 4 * groups) for at in range(COLUMNS)]
    negated = vector_at(builder, x, NEGATED_AT, I32, groups)
    sums = add_columns(builder, kind, block.columns, numbers, negated)
    factors = builder.fmul(block.scales, vector_at(builder, x, SCALES_AT, F32, groups))
    pairs = [(builder.sitofp(sums, factors.type), factors)]
    if block.minimums is not None:
        pairs.append((block.minimums, vector_at(builder, x, SUMS_AT, F32, groups)))
    for pair in pairs:
        total = fused(builder, *(filled_up(builder, vector, LANES) for vector in pair), total)
    return total


@intrinsic(prefer_literal=True)
def dot_codes(typing_context, form, blocks, totals, address, left, x, step):
    """Each of the totals plus the products of `blocks` neighbouring blocks from an address on and the numbers
    of a rounded vector from the address x on, in LANES parts; x advances by `step` bytes per total. Blocks
    after the first `left` are read as the last of these, and their numbers must be zeros.
    """

    def emit(context, builder, sig, args):
        _, _, totals, address, left, x, step = args
        totals = cgutils.unpack_tuple(builder, totals)
        kind, count = FORMATS[form.literal_value], blocks.literal_value
        _fetch_ahead(builder, address, kind.size * count)
        last, addresses = builder.sub(left, ir.Constant(I64, 1)), []
        for at in range(count):
            at = ir.Constant(I64, at)
            at = builder.select(builder.icmp_signed("<", at, last), at, last)
            addresses.append(builder.add(address, builder.mul(at, ir.Constant(I64, kind.size))))
        block = _Block(builder, kind, addresses)
        for i, total in enumerate(totals):
            totals[i] = _add_block(builder, kind, block, x, total)
            x = builder.add(x, step)
        return context.make_tuple(builder, sig.return_type, totals)

    place = types.int64
    return totals(form, blocks, totals, place, place, place, place), emit


def _numbers_of_floats(builder, block):
    """Emits the numbers of a block of floats, LANES at a time, and the group of each."""
    for group, numbers in enumerate(block.numbers):
        yield group, numbers() if block.scale is None else builder.fmul(numbers(), block.scale)


def _numbers_of_codes(builder, read, kind, block):
    """Emits the numbers of a block of codes, LANES at a time, and the group of each."""
    for piece, code in enumerate(block.pieces):
        codes = code()
        if kind.least:
            codes = builder.add(codes, ir.Constant(codes.type, [kind.least & 255] * codes.type.count))
        for at, group in enumerate(groups_of(kind, piece)):
            numbers = read.signed(part(builder, codes, at * LANES, LANES))
            scale = in_order(builder, block.scales, [group] * LANES)
            if block.minimums is None:
                yield group, builder.fmul(numbers, scale)
            else:
                yield (
                    group,
                    fused(builder, numbers, scale, in_order(builder, block.minimums, [group] * LANES)),
                )


@intrinsic(prefer_literal=True)
def unpack_block(typing_context, form, block, out, kind):
    """Write the numbers of the block at one address to another, as float32 or bfloat16."""

    def emit(context, builder, sig, args):
        described = FORMATS[form.literal_value]
        read = reader(builder, args[1])
        block = described.block(read)
        if isinstance(described, FloatFormat):
            found = _numbers_of_floats(builder, block)
        else:
            found = _numbers_of_codes(builder, read, described, block)
        for group, numbers in found:
            if kind.instance_class is Bfloat16:
                numbers = round_to_bfloat16(builder, numbers)
            place = builder.inttoptr(args[2], numbers.type.as_pointer())
            builder.store(numbers, builder.gep(place, [ir.Constant(I64, group)])).align = 2
        return context.get_dummy_value()

    return types.void(form, types.int64, types.int64, kind), emit


@njit
def whole_lanes(count):
    """Round up to a multiple of LANES."""
    return -(-count // LANES) * LANES


@njit
def second_of(row, half, count):
    """The row of `count` that is multiplied together with one of the first `half`. They share reads of x, and
    lie far apart because memory is faster when read in two places.
    """
    return min(row + half, count - 1)


@njit
def block_of(product, row):
    """The address of a row's first block."""
    return product.data + row * product.row_bytes


@lru_cache(maxsize=None, typed=True)
def build_product(form: str) -> int:
    """Compile rows(first, last, product, x, out): products of some rows with x, written from `out` on.

    product, x, out: addresses. x: a rounded vector for types of codes, else float32.
    """
    stamp = source_stamp()

    def rows(first, last, product_at, x, out_at):
        _ = stamp
        product, out = products_at(product_at)[0], floats_at(out_at)
        half, none = (last - first + 1) // 2, (splat(ZERO),)
        for upper in range(half):
            lower = second_of(upper, half, last - first)
            block, other = block_of(product, first + upper), block_of(product, first + lower)
            a, b = add_blocks(form, none, none, block, other, product.blocks, x, 0)
            out[upper], out[lower] = sum_lanes(a[0]), sum_lanes(b[0])

    return stage(rows, STAGE)


@lru_cache(maxsize=None, typed=True)
def build_products(form: str) -> int:
    """Compile the same for TILE vectors, `product.x_step` bytes apart from x on, each multiplied as it would
    be alone: out is [TILE, rows rounded up to a multiple of LANES].
    """
    stamp = source_stamp()

    def rows(first, last, product_at, x, out_at):
        _ = stamp
        product, out = products_at(product_at)[0], floats_at(out_at)
        width, none = whole_lanes(last - first), splat(ZERO)
        half, zeros = (last - first + 1) // 2, (none, none, none, none)
        for upper in range(half):
            lower = second_of(upper, half, last - first)
            block, other = block_of(product, first + upper), block_of(product, first + lower)
            a, b = add_blocks(form, zeros, zeros, block, other, product.blocks, x, product.x_step)
            for i in range(TILE):
                out[i * width + upper], out[i * width + lower] = sum_lanes(a[i]), sum_lanes(b[i])

    return stage(rows, STAGE)


def _adds_floats(form: str) -> Callable[..., tuple]:
    """What `add_blocks` compiles for a type of floats."""
    numbers, size = FORMATS[form].numbers, FORMATS[form].size

    def add(a, b, block, other, blocks, x_at, step):
        x = floats_at(x_at)
        for at in range(blocks):
            a = dot_floats(form, a, block + at * size, x, at * numbers, step // 4)
            b = dot_floats(form, b, other + at * size, x, at * numbers, step // 4)
        return a, b

    return distinct(add)


def _adds_codes(form: str) -> Callable[..., tuple]:
    """What `add_blocks` compiles for a type of codes."""
    numbers, size = FORMATS[form].numbers, FORMATS[form].size
    whole, half = WHOLE // numbers, max(1, HALF // numbers)

    def add(a, b, block, other, blocks, x, step):
        at = 0
        while at + whole <= blocks:
            a = dot_codes(form, whole, a, block + at * size, whole, x, step)
            b = dot_codes(form, whole, b, other + at * size, whole, x, step)
            at, x = at + whole, x + SIZE
        if whole > 1:
            while at < blocks:
                a = dot_codes(form, half, a, block + at * size, blocks - at, x, step)
                b = dot_codes(form, half, b, other + at * size, blocks - at, x, step)
                at, x = at + half, x + COLUMN // 2
        return a, b

    return distinct(add)


@intrinsic(prefer_literal=True)
def add_blocks(typing_context, form, a, b, block, other, blocks, x, step):
    """(a, b), LANES parts for each vector, plus the products of the blocks of two rows and the vectors at the
    address x, `step` bytes apart.
    """
    # A stage must not close over a compiled function: numba would not find the stage on disk again.
    name = form.literal_value
    adds = _adds_codes(name) if isinstance(FORMATS[name], CodeFormat) else _adds_floats(name)

    def emit(context, builder, sig, args):
        inner = typing.signature(sig.return_type, *sig.args[1:])
        return context.compile_internal(builder, adds, inner, args[1:])

    both = types.UniTuple(a, 2)
    return both(form, a, b, block, other, types.int64, types.int64, types.int64), emit


@lru_cache(maxsize=None, typed=True)
def build_unpack(form: str, kind: Float32 | Bfloat16) -> int:
    """Compile the stage that unpacks rows of blocks, `share` rows per task."""
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
