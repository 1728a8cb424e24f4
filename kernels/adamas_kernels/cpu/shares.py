"""Counts the tokens that an error requires: those whose share of the softmax reaches it, see `reference`.

The sum below a share is kept as two integers, for the bin of the largest exponent and for the bin below it,
so it equals the reference's in any order of its terms.
"""

from __future__ import annotations

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.estimate import ranked_range
from adamas_kernels.cpu.floats import to_float
from adamas_kernels.cpu.lanes import (
    LANES,
    count_bits,
    first_lane_int,
    load,
    mask_bits,
    splat,
    to_ints,
    where,
)
from adamas_kernels.cpu.largest import LEAST, extremes
from adamas_kernels.cpu.packed_rows import centre_at, enter_query, row_number
from adamas_kernels.cpu.records import (
    FACTS,
    HIGH,
    LOW,
    OFFSET,
    TOP,
    UNIT,
    floats_at,
    ints_at,
    numbers_at,
)
from adamas_kernels.reference import (
    LARGEST_EXPONENT,
    LEAST_ATTENDED,
    ORIGIN,
    SPAN,
    SPAN_BITS,
    UNIT_BITS,
    UNITS,
)
from adamas_kernels.reference import UNITS_PER_NAT as _UNITS_PER_NAT

UNITS_PER_NAT, MOST = np.float32(_UNITS_PER_NAT), np.float32(LARGEST_EXPONENT)
BIN_BITS = UNIT_BITS + SPAN_BITS
ZERO = np.float32(0)


@njit
def exponents(units):
    """`reference.exponents` of LANES floats."""
    units = where(units < splat(MOST), units, splat(MOST))
    units = where(units > splat(-MOST), units, splat(-MOST))
    return to_ints(units) + splat(ORIGIN)


@njit
def add_powers(high, low, exponent, counted, top):
    """Add LANES powers of 2 with these exponents, where counted, to the sums in bin `top` and below."""
    power = ((exponent & splat(UNITS - 1)) | splat(UNITS)) << (
        (exponent >> splat(UNIT_BITS)) & splat(SPAN - 1)
    )
    upper, place = power >> splat(SPAN), exponent >> splat(BIN_BITS)
    first, second = counted & (place == splat(top)), counted & (place == splat(top - 1))
    high = high + where(first, upper, splat(0))
    low = low + where(first, power & splat(UNITS - 1), where(second, upper, splat(0)))
    return high, low


@njit
def exact_exponent(query, of_centre, keys, at, dim, size, scaling, offset, products):
    """The exponent of an exact score minus `offset`, in the reference's order of operations. of_centre: the
    query's product with the keys' centre, which the rows lack.
    """
    for i in range(dim):
        products[i] = query[i] * row_number(keys, at, i, dim)
    for i in range(dim, size):
        products[i] = ZERO
    half = size // 2
    while half > 0:
        for i in range(half):
            products[i] += products[i + half]
        half //= 2
    return first_lane_int(exponents(splat((scaling * (products[0] + of_centre) - offset) * UNITS_PER_NAT)))


@njit
def begin_sums(query_kind, kind, step, layer, scratch, place):
    """Write to one query's facts the highest bin of all exponents, and the sums of its sinks and recents."""
    facts = floats_at(scratch.facts + 4 * FACTS * place)
    found = ints_at(scratch.facts + 4 * FACTS * place)
    forced = ints_at(scratch.chosen + 4 * place * scratch.row)  # not needed yet
    pair, n = place // (step.group * step.new), place % step.new
    b, head = pair // step.kv_heads, pair % step.kv_heads
    query_head = place // step.new - b * step.kv_heads * step.group
    queries, keys = numbers_at(step.query, query_kind), numbers_at(layer.keys, kind)
    query_at = b * step.query_b + query_head * step.query_h + n * step.query_n
    keys_at = b * layer.keys_b + head * layer.keys_h
    query = floats_at(scratch.vector)
    for i in range(step.dim):
        query[i] = to_float(queries[query_at + i])
    of_centre = enter_query(keys, query, step.dim, centre_at(keys, layer, step, pair))
    begin, end = ranked_range(step, n)
    scaling, products = np.float32(step.scaling), floats_at(scratch.block)
    _, best = extremes(floats_at(scratch.peaks + 4 * place * step.peak_room), step.segments * step.groups)
    top = 0
    if best > LEAST:
        top = first_lane_int(exponents(splat(best * (facts[UNIT] * UNITS_PER_NAT))))
    count = begin + step.length + n + 1 - end
    for i in range(count):
        at = i if i < begin else end + i - begin
        forced[i] = exact_exponent(
            query, of_centre, keys, keys_at + at * layer.keys_n, step.dim, step.size, scaling,
            facts[OFFSET], products,
        )  # fmt: skip
        top = max(top, forced[i])
    top >>= BIN_BITS
    high = low = 0
    for i in range(count):
        term_high, term_low = add_powers(splat(0), splat(0), splat(forced[i]), splat(0) == splat(0), top)
        high += first_lane_int(term_high)
        low += first_lane_int(term_low)
    found[TOP], found[HIGH], found[LOW] = top, high, low


@njit
def logarithm(mass):
    """`reference.log_mass` of a sum of powers in units of the lowest bit of the highest bin."""
    octave = UNIT_BITS  # the largest power has at least this octave
    while mass >> (octave + 1) > 0:
        octave += 1
    return ((octave - SPAN) << UNIT_BITS) + (mass >> (octave - UNIT_BITS)) - UNITS


@njit
def reaching(step, scratch, place, rank, count, want, forced):
    """How many of the `want` best of `count` padded ranks are attended to, besides `forced` others: those
    whose share reaches the error, and at least LEAST_ATTENDED in total.
    """
    facts, found = (
        floats_at(scratch.facts + 4 * FACTS * place),
        ints_at(scratch.facts + 4 * FACTS * place),
    )
    highs, lows = (
        ints_at(scratch.highs + 4 * place * step.room),
        ints_at(scratch.lows + 4 * place * step.room),
    )
    mass = (np.int64(found[HIGH]) << SPAN) + found[LOW]
    for segment in range(step.segments):
        mass += (np.int64(highs[segment]) << SPAN) + lows[segment]
    bound = logarithm(mass) + (np.int64(found[TOP]) << BIN_BITS) + step.least_share
    slope, number = facts[UNIT] * UNITS_PER_NAT, 0
    for i in range(0, count, LANES):
        ranks = load(rank, i)
        enough = exponents(ranks * splat(slope)) >= splat(bound)
        number += count_bits(mask_bits(enough & (ranks > splat(LEAST))))
    return min(want, max(number, LEAST_ATTENDED - forced))
