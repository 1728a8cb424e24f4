"""Rotate, bucketize, pack and quantize up to LANES rows at once, one row per lane.

A block of rows is float32 [P * LANES]: for each coordinate, the rows side by side. Float operations and their
order are those of `reference.py`.
"""

from __future__ import annotations

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import ROUNDER, to_float
from adamas_kernels.cpu.lanes import (
    LANES,
    load,
    splat,
    store,
    to_floats,
    to_ints,
    where,
)
from adamas_kernels.reference import CODES_PER_WORD, GAUSSIAN_EDGE, QUERY_LEVELS

EDGE = np.float32(GAUSSIAN_EDGE)
LEVELS = np.float32(QUERY_LEVELS)
ZERO, ONE = np.float32(0), np.float32(1)


@njit
def load_rows(source, at, row_stride, rows, dim, size, block, lane):
    """Put `rows` rows of `dim` numbers, from source[at], into the lanes from `lane` on, padded to `size`."""
    for row in range(rows):
        start = at + row * row_stride
        for i in range(dim):
            block[i * LANES + lane + row] = to_float(source[start + i])
        for i in range(dim, size):
            block[i * LANES + lane + row] = ZERO


@njit
def clear_rows(size, block, lane):
    """Zero the lanes from `lane` on."""
    for i in range(size):
        for unused in range(lane, LANES):
            block[i * LANES + unused] = ZERO


@njit
def multiply_rows(block, dim, factors):
    """Multiply the coordinates of each row by factors."""
    for i in range(dim):
        store(block, i * LANES, load(block, i * LANES) * splat(factors[i]))


@njit
def divide_rows(block, dim, factors):
    """Divide the coordinates of each row by factors."""
    for i in range(dim):
        store(block, i * LANES, load(block, i * LANES) / splat(factors[i]))


@njit
def rotate(block, size):
    """Hadamard-transform the rows of a block in place."""
    step = 1
    while step < size:
        for start in range(0, size, 2 * step):
            for i in range(start, start + step):
                low, high = load(block, i * LANES), load(block, (i + step) * LANES)
                store(block, i * LANES, low + high)
                store(block, (i + step) * LANES, low - high)
        step *= 2
    factor = splat(np.float32(size**-0.5))
    for i in range(size):
        store(block, i * LANES, load(block, i * LANES) * factor)


@njit
def tree_sum(block, size):
    """The sum of each row's coordinates, by adding halves; overwrites the block."""
    half = size // 2
    while half > 0:
        for i in range(half):
            store(block, i * LANES, load(block, i * LANES) + load(block, (i + half) * LANES))
        half //= 2
    return load(block, 0)


@njit
def bucketize(x, edge):
    """The number of edges (-t, 0, t) strictly below each lane."""
    code = where(x > splat(ZERO) - edge, splat(1), splat(0)) + where(x > splat(ZERO), splat(1), splat(0))
    return code + where(x > edge, splat(1), splat(0))


@njit
def shift_in_word(i):
    """Where coordinate i of a word of sixteen codes lies: coordinate 4a + b at bit 8b + 2a."""
    return 8 * (i % 4) + 2 * (i // 4)


@njit
def encode_block(block, size, mean, edge, words):
    """Rotated keys -> words int32 [W * LANES]; returns the scales, one per lane. Overwrites the block."""
    length = splat(ZERO)
    for w in range(size // CODES_PER_WORD):
        word = splat(0)
        for i in range(CODES_PER_WORD):
            at = w * CODES_PER_WORD + i
            centred = load(block, at * LANES) - splat(mean[at])
            code = bucketize(centred, splat(edge))
            word = word | (code << splat(shift_in_word(i)))
            level = to_floats(code + code - splat(3))
            length = length + level * level  # integers: any order gives the same sum
            store(block, at * LANES, centred * level)
        store(words, w * LANES, word)
    return tree_sum(block, size) / length


@njit
def quantize_block(block, size, words):
    """Rotated queries -> int8 coordinates, four per word, int32 [P / 4 * LANES].

    Returns each lane's step and the sum of its integers.
    """
    highest = splat(ZERO)
    for i in range(size):
        x = load(block, i * LANES)
        magnitude = where(x < splat(ZERO), splat(ZERO) - x, x)
        highest = where(magnitude > highest, magnitude, highest)
    step = highest / splat(LEVELS)
    unit = where(step > splat(ZERO), step, splat(ONE))
    total = splat(0)
    for quad in range(size // 4):
        word = splat(0)
        for byte in range(4):
            scaled = load(block, (4 * quad + byte) * LANES) / unit
            integer = to_ints((scaled + splat(ROUNDER)) - splat(ROUNDER))
            total = total + integer
            word = word | ((integer & splat(255)) << splat(8 * byte))
        store(words, quad * LANES, word)
    return step, total


@njit
def bucketize_block(block, size, edge, words):
    """Rotated queries -> codes, sixteen per word, int32 [W * LANES]; edge: one per lane."""
    for w in range(size // CODES_PER_WORD):
        word = splat(0)
        for i in range(CODES_PER_WORD):
            code = bucketize(load(block, (w * CODES_PER_WORD + i) * LANES), edge)
            word = word | (code << splat(shift_in_word(i)))
        store(words, w * LANES, word)


@njit
def square_sum(block, size, spare):
    """The sum of squares of each row."""
    for i in range(size):
        x = load(block, i * LANES)
        store(spare, i * LANES, x * x)
    return tree_sum(spare, size)


@njit
def product_with(block, size, vector, spare):
    """The product of each row with one vector."""
    for i in range(size):
        store(spare, i * LANES, load(block, i * LANES) * splat(vector[i]))
    return tree_sum(spare, size)
