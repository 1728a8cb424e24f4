"""Attention in integers of 16 bits, for CPUs that multiply pairs of them twice as fast as float32.

Each query, key and value has a unit of its own. A value's unit meets its weight, so weights are rounded with
the values' units in them, and relative to the largest of a tile, not of the row, so that many small ones far
from a large one are not lost. Units do not depend on later tokens. int32 sums cannot overflow; numbers have
12 to 16 bits where bfloat16 has 8.
"""

from __future__ import annotations

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import LEAST, LOG2_E, ONE, ROUNDER, ZERO, exp2, to_float
from adamas_kernels.cpu.lanes import (
    LANES,
    lane_numbers,
    load,
    max_lanes,
    multiply_add,
    reinterpret,
    splat,
    store,
    store_shorts,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.records import floats_at, ints_at, numbers_at
from adamas_kernels.cpu.running import raise_highest
from adamas_kernels.cpu.tile import TILE

POWER = np.float32(13)  # the largest weight of a tile is 2 to this
LARGEST_VALUE = np.float32(4095)  # a sum of TILE products of values with weights fits in 32 bits
LARGEST_SHORT, LONGEST_ROW = np.float32(32767), np.float32(46300)  # its square fits in 32 bits, once rounded
LEAST_SQUARE, LEAST_UNIT = np.float32(1e-30), np.float32(1e-30)  # rows below these count as zeros
LEAST_WEIGHT = np.float32(2.0**-13)
UNIT = np.float32(LEAST_WEIGHT / LARGEST_VALUE)  # of sums of weighted values

# The words of a packed tile of keys are followed by TILE units of the keys, by the exponents of their values'
# units, and by one by each of these units. `tiles` are addresses of what follows the words.


@njit
def rounded(x, factor):
    """The integers nearest to x factor, in the low 16 bits of each lane; the others are arbitrary."""
    return reinterpret(multiply_add(x, factor, splat(ROUNDER)))


@njit
def extent(stored, at, dim):
    """The largest size of `dim` numbers from `at` on, and the sum of their squares."""
    whole, top, squares = dim // LANES * LANES, splat(ZERO), splat(ZERO)
    for d in range(0, whole, LANES):
        part = load(stored, at + d)
        squares = multiply_add(part, part, squares)
        part = where(part < splat(ZERO), splat(ZERO) - part, part)
        top = where(part > top, part, top)
    largest, square = max_lanes(top), sum_lanes(squares)
    for d in range(whole, dim):
        number = to_float(stored[at + d])
        largest, square = max(largest, abs(number)), square + number * number
    return largest, square


@njit
def round_row(stored, at, dim, shorts, place):
    """`dim` numbers from `at` on -> integers whose products with another such row have a sum below 2^31,
    as no sum is larger than the product of both rows' lengths. Returns their unit.
    """
    largest, square = extent(stored, at, dim)
    unit = max(largest / LARGEST_SHORT, np.sqrt(square) / LONGEST_ROW)
    factor, whole = ONE / unit if square > LEAST_SQUARE else ZERO, dim // LANES * LANES
    for d in range(0, whole, LANES):
        store_shorts(shorts, place + d, rounded(load(stored, at + d), splat(factor)))
    for d in range(whole, dim):
        shorts[place + d] = np.uint16(np.int32(np.rint(to_float(stored[at + d]) * factor)) & 0xFFFF)
    return unit


def pack_short_keys(form, kept, flash, head, first, total, packed_at):
    """TILE keys of one KV head, from `first` on: words of two coordinates, keys side by side, then the keys'
    units. Keys from `total` on are zeros.
    """
    keys, words = numbers_at(flash.key, kept), flash.dim // 2
    packed, units = ints_at(packed_at), floats_at(packed_at + 4 * words * TILE)
    shorts = np.zeros(TILE * flash.dim, np.uint16)
    for i in range(TILE):
        units[i] = ZERO
        if first + i < total:
            at = head * flash.key_h + (first + i) * flash.key_n
            units[i] = round_row(keys, at, flash.dim, shorts, i * flash.dim)
    rows = ints_at(shorts.ctypes.data)
    for word in range(words):
        for i in range(TILE):
            packed[word * TILE + i] = rows[i * words + word]
    shorts[0] = 0  # numba frees arrays after their last use; addresses do not count


def pack_short_values(form, kept, flash, head, first, total, packed_at, of_keys):
    """The same of their values: words of two tokens, coordinates side by side. of_keys: the address of the
    packed keys, which get the exponents of the values' units and the numbers one by each unit.
    """
    values, start = numbers_at(flash.value, kept), head * flash.value_h + first * flash.value_n
    packed, units = ints_at(packed_at), floats_at(packed_at + 4 * (TILE // 2) * flash.dim_v)
    exponents, inverses = floats_at(of_keys + 4 * TILE), floats_at(of_keys + 8 * TILE)
    for i in range(TILE):
        unit = ONE
        if first + i < total:
            largest, _ = extent(values, start + i * flash.value_n, flash.dim_v)
            unit = largest if largest > LEAST_UNIT else ONE
        exponents[i], inverses[i] = np.log2(unit), ONE / unit
    for d in range(0, flash.dim_v, LANES):
        store(units, d, splat(UNIT))
        for i in range(0, TILE, 2):
            low, high = splat(0), splat(0)
            if first + i < total:
                factor = splat(LARGEST_VALUE * inverses[i])
                low = rounded(load(values, start + i * flash.value_n + d), factor) & splat(0xFFFF)
            if first + i + 1 < total:
                factor = splat(LARGEST_VALUE * inverses[i + 1])
                high = rounded(load(values, start + (i + 1) * flash.value_n + d), factor) << splat(16)
            store(packed, i // 2 * flash.dim_v + d, low | high)


def weigh_shorts(
    form, scores, at, weights, tiles, factors, place, scaling, seen, width, highest, sums, row, sum_row, dim_v
):
    """`prefill.weigh_row`, with integers as weights."""
    scaling *= LOG2_E
    for i in range(seen // LANES * LANES, width, LANES):
        store(scores, at + i, where(lane_numbers() < splat(seen - i), load(scores, at + i), splat(LEAST)))
    best, tops = LEAST, place + LANES
    for tile in range(width // TILE):
        exponents, top = floats_at(tiles[tile] + 4 * TILE), splat(LEAST)
        for i in range(0, TILE, LANES):
            score = at + tile * TILE + i
            part = multiply_add(load(scores, score), splat(scaling), load(exponents, i))
            store(scores, score, part)
            top = where(part > top, part, top)
        found = max_lanes(top)
        factors[tops + tile] = found
        best = max(best, found)
    raise_highest(best, highest, sums, row, sum_row, dim_v)
    found = load(factors, tops)
    store(factors, place, exp2(found - splat(highest[row])))
    store(factors, tops, where(found > splat(LEAST), splat(POWER) - found, splat(ZERO)))
    total = splat(ZERO)
    for tile in range(width // TILE):
        base, part, inverses = splat(factors[tops + tile]), splat(ZERO), floats_at(tiles[tile] + 8 * TILE)
        for i in range(0, TILE, LANES):
            score = at + tile * TILE + i
            weight = exp2(load(scores, score) + base)
            part = multiply_add(weight, load(inverses, i), part)
            store_shorts(weights, score, reinterpret(weight + splat(ROUNDER)))
        total = multiply_add(part, splat(factors[place + tile]), total)
    sums[row] += sum_lanes(total) * LEAST_WEIGHT
