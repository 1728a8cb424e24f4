"""Rows of a cache in any format, see `packed.py`: read in vectors, written from float32.

Packed rows are arrays of bytes, int8 for 8-bit codes and uint8 for 4-bit codes: the type of an array selects
how its rows are read. A row of plain numbers has nothing else in it.
"""

from __future__ import annotations

import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic, overload

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import I16, float_to_float16, put_float, to_float
from adamas_kernels.cpu.lanes import LANES, half_to_float, load, splat, to_floats
from adamas_kernels.cpu.records import floats_at
from adamas_kernels.packed import BITS, GROUP, LARGEST, LEAST_SCALE, SCALE_BYTES, ZERO_CODE
from adamas_kernels.packed import block_of as _block_of

PACKED = (types.int8, types.uint8)
GROUP_BYTES = {types.int8: GROUP * BITS[torch.int8] // 8, types.uint8: GROUP * BITS[torch.uint8] // 8}
LEVELS = {types.int8: np.float32(LARGEST[torch.int8]), types.uint8: np.float32(LARGEST[torch.uint8])}
LEAST, ZERO = np.float32(LEAST_SCALE), np.float32(0)
HALF_GROUP = GROUP // 2

block_of = njit(_block_of)


@intrinsic
def half_at(typing_context, array, index):
    """The float16 in two bytes of an array of bytes, as float32."""

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), I16.as_pointer())
        bits = builder.load(place)
        bits.align = 1
        return half_to_float(builder, bits)

    return types.float32(array, types.intp), emit


@intrinsic
def put_half(typing_context, array, index, bits):
    """Write the bits of a float16, int16, to two bytes of an array of bytes."""

    def emit(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), I16.as_pointer())
        builder.store(args[2], place).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int16), emit


def row_lanes(rows, at, i, dim):
    """LANES numbers of a row that begins at rows[at], from number i on, a multiple of LANES."""
    raise NotImplementedError


@overload(row_lanes)
def _row_lanes(rows, at, i, dim):
    if rows.dtype == types.int8:

        def lanes(rows, at, i, dim):
            scale = half_at(rows, at + dim + i // GROUP * SCALE_BYTES)
            return load(rows, at + i) * splat(scale)

    elif rows.dtype == types.uint8:

        def lanes(rows, at, i, dim):
            scale = half_at(rows, at + dim // 2 + i // GROUP * SCALE_BYTES)
            codes = load(rows, at + i // GROUP * HALF_GROUP)
            shift = i % GROUP // LANES * 4
            return to_floats(((codes >> splat(shift)) & splat(15)) - splat(ZERO_CODE)) * splat(scale)

    else:

        def lanes(rows, at, i, dim):
            return load(rows, at + i)

    return lanes


def row_number(rows, at, i, dim):
    """One number of a row that begins at rows[at]."""
    raise NotImplementedError


@overload(row_number)
def _row_number(rows, at, i, dim):
    if rows.dtype == types.int8:

        def number(rows, at, i, dim):
            return np.float32(rows[at + i]) * half_at(rows, at + dim + i // GROUP * SCALE_BYTES)

    elif rows.dtype == types.uint8:

        def number(rows, at, i, dim):
            byte = rows[at + i // GROUP * HALF_GROUP + i % HALF_GROUP]
            code = (byte >> (i % GROUP // HALF_GROUP * 4)) & 15
            return np.float32(code - ZERO_CODE) * half_at(rows, at + dim // 2 + i // GROUP * SCALE_BYTES)

    else:

        def number(rows, at, i, dim):
            return to_float(rows[at + i])

    return number


@njit
def rotate_row(x, dim):
    """Rotate float32 x[:dim] in place, see `packed.rotated`."""
    block = block_of(dim)
    step = 1
    while step < block:
        for start in range(0, dim, 2 * step):
            for i in range(start, start + step):
                low, high = x[i], x[i + step]
                x[i], x[i + step] = low + high, low - high
        step *= 2
    factor = np.float32(block**-0.5)
    for i in range(dim):
        x[i] *= factor


def turn(rows, x, dim):
    """Rotate float32 x[:dim] in place if rows are packed: a query to match keys, or a sum of values back."""
    raise NotImplementedError


@overload(turn)
def _turn(rows, x, dim):
    if rows.dtype in PACKED:
        return lambda rows, x, dim: rotate_row(x, dim)
    return lambda rows, x, dim: None


def centre_at(keys, layer, step, pair):
    """The centre of one KV head's keys, float32 [dim], empty if they are not packed."""
    raise NotImplementedError


@overload(centre_at)
def _centre_at(keys, layer, step, pair):
    if keys.dtype not in PACKED:
        return lambda keys, layer, step, pair: floats_at(layer.keys)[:0]
    return lambda keys, layer, step, pair: floats_at(layer.centre + 4 * pair * step.dim)[: step.dim]


@njit
def enter_query(keys, query, dim, centre):
    """Rotate a float32 query in place to match the keys; returns its product with their centre."""
    turn(keys, query, dim)
    total = ZERO
    for i in range(len(centre)):
        total += query[i] * centre[i]
    return total


def put_row(rows, at, x, dim, centre):
    """Write float32 x[:dim] to a row that begins at rows[at]. centre: of keys in packed rows, float32 [dim],
    or empty. Overwrites x if rows are packed.
    """
    raise NotImplementedError


@overload(put_row)
def _put_row(rows, at, x, dim, centre):
    if rows.dtype not in PACKED:

        def put(rows, at, x, dim, centre):
            for i in range(dim):
                put_float(rows, at + i, x[i])

        return put
    levels, group_bytes, wide = LEVELS[rows.dtype], GROUP_BYTES[rows.dtype], rows.dtype == types.int8

    def put_packed(rows, at, x, dim, centre):
        rotate_row(x, dim)
        for i in range(len(centre)):
            x[i] -= centre[i]
        scales_at = at + dim // GROUP * group_bytes
        for group in range(dim // GROUP):
            first, highest = group * GROUP, ZERO
            for i in range(first, first + GROUP):
                highest = max(highest, abs(x[i]))
            bits = float_to_float16(max(highest / levels, LEAST))
            put_half(rows, scales_at + group * SCALE_BYTES, bits)
            scale = to_float(bits)
            for i in range(first, first + GROUP):
                x[i] = min(max(np.float32(np.rint(x[i] / scale)), -levels), levels)
            place = at + group * group_bytes
            if wide:
                for i in range(GROUP):
                    rows[place + i] = np.int8(x[first + i])
            else:
                for i in range(HALF_GROUP):
                    low, high = int(x[first + i]) + ZERO_CODE, int(x[first + HALF_GROUP + i]) + ZERO_CODE
                    rows[place + i] = np.uint8(low | high << 4)

    return put_packed
