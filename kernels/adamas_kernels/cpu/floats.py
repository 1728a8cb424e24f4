"""Number formats, which compiled code receives as bit patterns, and the exponential function.

bfloat16 is passed as uint16, float16 as int16, float32 as itself: an array's type selects the conversion.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.lanes import (
    first_lane,
    half_to_float,
    multiply_add,
    reinterpret,
    round_to_bfloat16,
    splat,
    where,
)

ZERO, ONE, LEAST = np.float32(0), np.float32(1), np.float32(-np.inf)
LOG2_E = np.float32(1.44269504)
LN2 = np.float32(0.69314718)
LN2_HIGH = np.float32(0.693359375)  # few bits, so its product with an exponent is exact
LN2_LOW = np.float32(-2.12194440e-4)
ROUNDER = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, halves to even
HALF, HALF_BITS = np.float32(0.5), 0x3F000000
LEAST_EXPONENT, LARGEST_EXPONENT = np.float32(-87.0), np.float32(88.0)
# exp(x) = 1 + x + x^2 p(x) for |x| <= ln 2 / 2, highest power first (Cephes, S. Moshier).
EXP_5, EXP_4, EXP_3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
EXP_2, EXP_1, EXP_0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)

# 2^x for |x| <= 1/2, highest power first, without the constant 1: the least largest relative error, 1e-7.
EXP2_5, EXP2_4, EXP2_3 = np.float32(0.0013264727), np.float32(0.009671513), np.float32(0.055507336)
EXP2_2, EXP2_1 = np.float32(0.24022242), np.float32(0.6931470)
LEAST_POWER = np.float32(-127)  # whose exponent's bits are zeros


class Float32(NamedTuple):
    """Marks float32 memory."""


class Bfloat16(NamedTuple):
    """Marks bfloat16 memory."""


class Float16(NamedTuple):
    """Marks float16 memory."""


class Bytes(NamedTuple):
    """Marks packed rows with codes of 8 bits, see `packed.py`."""


class HalfBytes(NamedTuple):
    """Marks packed rows with codes of 4 bits."""


Kind = Float32 | Bfloat16 | Float16
RowKind = Kind | Bytes | HalfBytes
KINDS: dict[torch.dtype, Kind] = {
    torch.float32: Float32(),
    torch.bfloat16: Bfloat16(),
    torch.float16: Float16(),
}
ROW_KINDS: dict[torch.dtype, RowKind] = {**KINDS, torch.int8: Bytes(), torch.uint8: HalfBytes()}
STORED = {
    Float32: types.float32, Bfloat16: types.uint16, Float16: types.int16,
    Bytes: types.int8, HalfBytes: types.uint8,
}  # fmt: skip

F32, I32, I16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)


@intrinsic
def _bfloat16_to_float(typing_context, bits):
    def emit(context, builder, sig, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), ir.Constant(I32, 16)), F32)

    return types.float32(types.uint16), emit


@intrinsic
def _float16_to_float(typing_context, bits):
    def emit(context, builder, sig, args):
        return half_to_float(builder, args[0])

    return types.float32(types.int16), emit


@intrinsic
def _float_to_bfloat16(typing_context, value):
    """Round to nearest, ties to even; NaN stays NaN."""

    def emit(context, builder, sig, args):
        return round_to_bfloat16(builder, args[0])

    return types.uint16(types.float32), emit


@intrinsic
def float_bits(typing_context, value):
    """The bits of a float32 as int32."""

    def emit(context, builder, sig, args):
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), emit


@intrinsic
def float_from_bits(typing_context, bits):
    """The float32 of the low 32 bits of an integer."""

    def emit(context, builder, sig, args):
        return builder.bitcast(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), emit


@njit
def float_to_float16(value):
    """Round to nearest, ties to even, in integers: not every CPU has an instruction for it."""
    bits = np.int64(float_bits(value))
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size > 0x7F800000:
        half = np.int64(0x7E00)
    elif size >= 0x47800000:  # 2^16, and infinity
        half = np.int64(0x7C00)
    elif size < 0x38800000:  # 2^-14: adding 1/2 rounds to the step of subnormal numbers
        half = np.int64(float_bits(float_from_bits(size) + HALF)) - HALF_BITS
    else:  # a carry into the exponent is correct, and past the largest gives infinity
        half = (size - (112 << 23) + 0xFFF + ((size >> 13) & 1)) >> 13
    return np.int16(sign | half)


def to_float(stored):
    """The float32 value of a number stored in an array."""
    raise NotImplementedError


@overload(to_float)
def _to_float(stored):
    if stored == types.uint16:
        return lambda stored: _bfloat16_to_float(stored)
    if stored == types.int16:
        return lambda stored: _float16_to_float(stored)
    return lambda stored: stored


def put_float(array, index, value):
    """Write a float32 in the format of the array."""
    raise NotImplementedError


@overload(put_float)
def _put_float(array, index, value):
    if array.dtype == types.uint16:

        def put(array, index, value):
            array[index] = _float_to_bfloat16(value)
    elif array.dtype == types.int16:

        def put(array, index, value):
            array[index] = float_to_float16(value)
    else:

        def put(array, index, value):
            array[index] = value

    return put


@njit
def exp(x):
    """exp of LANES floats, relative error below 2e-7; zero below -87, and bounded above."""
    bounded = where(x < splat(LARGEST_EXPONENT), x, splat(LARGEST_EXPONENT))
    shifted = multiply_add(bounded, splat(LOG2_E), splat(ROUNDER))
    whole = shifted - splat(ROUNDER)
    rest = multiply_add(whole, splat(-LN2_LOW), multiply_add(whole, splat(-LN2_HIGH), bounded))
    series = multiply_add(splat(EXP_5), rest, splat(EXP_4))
    series = multiply_add(series, rest, splat(EXP_3))
    series = multiply_add(series, rest, splat(EXP_2))
    series = multiply_add(series, rest, splat(EXP_1))
    series = multiply_add(series, rest, splat(EXP_0))
    series = multiply_add(series, rest * rest, rest + splat(np.float32(1)))
    # The low bits of `shifted` hold the integer; moved to the exponent, it becomes a power of two.
    power = reinterpret((reinterpret(shifted) << splat(23)) + splat(0x3F800000))
    return where(x > splat(LEAST_EXPONENT), series * power, splat(np.float32(0)))


@njit
def exp2(x):
    """2^x of LANES floats up to 127, relative error below 2e-7; zero below -127 and where x is NaN.

    Two thirds of the instructions of `exp`, which sees more of the bits of large negative numbers.
    """
    bounded = where(x > splat(LEAST_POWER), x, splat(LEAST_POWER))
    shifted = bounded + splat(ROUNDER)
    rest = bounded - (shifted - splat(ROUNDER))
    series = multiply_add(splat(EXP2_5), rest, splat(EXP2_4))
    series = multiply_add(series, rest, splat(EXP2_3))
    series = multiply_add(series, rest, splat(EXP2_2))
    series = multiply_add(series, rest, splat(EXP2_1))
    series = multiply_add(series, rest, splat(np.float32(1)))
    # The low bits of `shifted` hold the integer, which is added to the exponent.
    return reinterpret(reinterpret(series) + (reinterpret(shifted) << splat(23)))


@njit
def capped(x, cap):
    """cap tanh(x / cap) of LANES floats, see `Softmax`."""
    one, two = splat(np.float32(1)), np.float32(2)
    return splat(cap) - splat(two * cap) / (exp(x * splat(two / cap)) + one)


@njit
def capped_one(x, cap):
    """`capped` of one float32."""
    return first_lane(capped(splat(x), cap))


@njit
def exp_one(x):
    """`exp` of one float32."""
    return first_lane(exp(splat(x)))
