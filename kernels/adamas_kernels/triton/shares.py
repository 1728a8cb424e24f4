"""Counts the tokens that an error requires: those whose share of the softmax reaches it, see `reference`.

The sum below a share is kept as two integers, for the bin of the largest exponent so far and for the bin
below it. A larger exponent moves them down, and the sum stays equal to the reference's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels import reference as ref
from adamas_kernels.triton.coding import LOWEST, tree_sum
from adamas_kernels.triton.packed_rows import load_numbers

UNITS_PER_NAT = tl.constexpr(ref.UNITS_PER_NAT)
LARGEST_EXPONENT = tl.constexpr(ref.LARGEST_EXPONENT)
LEAST_ATTENDED = tl.constexpr(ref.LEAST_ATTENDED)
ORIGIN = tl.constexpr(ref.ORIGIN)
UNIT_BITS = tl.constexpr(ref.UNIT_BITS)
UNITS = tl.constexpr(ref.UNITS)
SPAN = tl.constexpr(ref.SPAN)
BIN_BITS = tl.constexpr(ref.UNIT_BITS + ref.SPAN_BITS)
NO_EXPONENT = tl.constexpr(-2 << (ref.UNIT_BITS + ref.SPAN_BITS))  # of no token: two bins below all others
SHARES = tl.constexpr(2)  # integers that a group keeps
DOUBLE_BITS = tl.constexpr(52)  # of a float64's mantissa
DOUBLE_BIAS = tl.constexpr(1023)


@triton.jit
def exponents(units):
    """`reference.exponents`."""
    return tl.minimum(tl.maximum(units, -LARGEST_EXPONENT), LARGEST_EXPONENT).to(tl.int32) + ORIGIN


@triton.jit
def add_share(high, low, leading, exponent):
    """Add one power of 2 to sums of powers, the largest of which has the exponent `leading`."""
    top, place = leading >> BIN_BITS, exponent >> BIN_BITS
    rises = place - top
    low = tl.where(rises > 0, tl.where(rises == 1, high, 0), low)
    high = tl.where(rises > 0, 0, high)
    octave = (exponent >> UNIT_BITS) & (SPAN - 1)
    mantissa = (exponent & (UNITS - 1)) | UNITS
    upper = mantissa >> (-octave + SPAN)
    high += tl.where(rises >= 0, upper, 0)
    low += tl.where(rises >= 0, (mantissa << octave) & (UNITS - 1), tl.where(rises == -1, upper, 0))
    return high, low


@triton.jit
def powers(exponent, top):
    """The parts of powers of 2 in bin `top` and the one below, int64."""
    power = ((exponent & (UNITS - 1)) | UNITS).to(tl.int64) << ((exponent >> UNIT_BITS) & (SPAN - 1))
    place = exponent >> BIN_BITS
    return tl.where(place == top, power, tl.where(place == top - 1, power >> SPAN, 0))


@triton.jit
def exact_exponents(
    query, keys, keys_n, scaling, shift, offset, forced, first_sinks, first_recent,
    FORCED: tl.constexpr, D: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr,
):  # fmt: skip
    """Exponents of the exact scores of a query's sinks and recents minus `offset`, int32 [FORCED]. shift: see
    `score_of`.
    """
    slot, dim = tl.arange(0, FORCED), tl.arange(0, P)
    real = slot < forced
    at = tl.where(slot < first_sinks, slot, first_recent + slot - first_sinks).to(tl.int64)
    mask = real[:, None] & (dim < D)[None, :]
    k = load_numbers(keys + at[:, None] * keys_n, dim[None, :], mask, D).to(tl.float32)
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32)
    score = scaling * tree_sum(k * q[None, :], FORCED, P, LOG_P) + shift
    return tl.where(real, exponents((score - offset) * UNITS_PER_NAT), NO_EXPONENT)


@triton.jit
def least_exponent(
    fact, best, shares, query, keys, keys_n, scaling, shift, least_share,
    forced, first_sinks, first_recent,
    GROUPS: tl.constexpr, FORCED: tl.constexpr, D: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr,
):  # fmt: skip
    """The lowest exponent of a token whose share reaches the error, of exponent `least_share`; pointers are
    to the query's own data.
    """
    group = tl.arange(0, GROUPS)
    first = tl.load(best + group)
    high, low = tl.load(shares + group), tl.load(shares + GROUPS + group)
    units, offset = tl.load(fact) * UNITS_PER_NAT, tl.load(fact + 1)
    exact = exact_exponents(
        query, keys, keys_n, scaling, shift, offset, forced, first_sinks, first_recent, FORCED, D, P, LOG_P
    )
    place = tl.where(first > LOWEST, exponents(first * units), NO_EXPONENT) >> BIN_BITS
    top = tl.maximum(tl.max(place, axis=0), tl.max(exact, axis=0) >> BIN_BITS)
    high = high.to(tl.int64)
    ranked = tl.where(place == top, (high << SPAN) + low, tl.where(place == top - 1, high, 0))
    mass = tl.sum(ranked, axis=0) + tl.sum(powers(exact, top), axis=0)
    bits = mass.to(tl.float64).to(tl.int64, bitcast=True)  # exact: a mass has fewer than DOUBLE_BITS bits
    logarithm = (bits >> (DOUBLE_BITS - UNIT_BITS)) - ((DOUBLE_BIAS + SPAN) << UNIT_BITS)
    bound = logarithm + (top.to(tl.int64) << BIN_BITS) + least_share
    return tl.minimum(bound, 0x7FFFFFFF).to(tl.int32)


@triton.jit
def reaching(rank, units, least):
    """Whether each rank's share reaches the error: its exponent is at least `least`."""
    return (rank > LOWEST) & (exponents(rank * units) >= least)
