"""Finds a rank that a wanted number of ranks reach, by bisection."""

from __future__ import annotations

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import float_bits, float_from_bits
from adamas_kernels.cpu.lanes import LANES, count_bits, load, mask_bits, max_lanes, splat, store, where

# The interval of values is halved this many times, enough for evenly distributed ranks. Then the sequence of
# all float32 numbers in it is halved, which ends after 32 halvings for any ranks.
BY_VALUE = 16
ZERO, HALF = np.float32(0), np.float32(0.5)
LEAST, MOST = np.float32(-np.inf), np.float32(np.inf)  # LEAST is below all ranks, but not a rank
LOWEST = np.finfo(np.float32).min  # of all ranks


@njit
def ordered(x):
    """float32 -> integer with the same order."""
    bits = np.int64(float_bits(x))
    return bits ^ ((bits >> 63) & 0x7FFFFFFF)


@njit
def unordered(key):
    """The inverse of `ordered`."""
    return float_from_bits(key ^ ((key >> 63) & 0x7FFFFFFF))


@njit
def pad(rank, count):
    """Fill the last block of lanes with LEAST."""
    store(rank, count, splat(LEAST))


@njit
def count_from(rank, count, least):
    """The number of ranks that are at least `least`."""
    number = 0
    for i in range(0, count, LANES):
        number += count_bits(mask_bits(load(rank, i) >= splat(least)))
    return number


@njit
def extremes(rank, count):
    """The lowest and the highest rank, or MOST and LEAST without ranks."""
    low, high = splat(MOST), splat(LEAST)
    for i in range(0, count, LANES):
        ranks = load(rank, i)
        low = where((ranks < low) & (ranks > splat(LEAST)), ranks, low)
        high = where(ranks > high, ranks, high)
    return -max_lanes(splat(ZERO) - low), max_lanes(high)


@njit
def kth_largest(rank, count, want, surplus):
    """A rank that `want` to `want + surplus` of `count` padded ranks reach, or the want-th largest rank if it
    has more ties; LOWEST if there are fewer ranks.
    """
    lowest, highest = extremes(rank, count)
    if count_from(rank, count, lowest) < want:
        return LOWEST
    low, high = ordered(lowest), ordered(highest)
    turn = 0
    while low < high:
        middle = low + (high - low + 1) // 2
        if turn < BY_VALUE:
            value = ordered(HALF * unordered(low) + HALF * unordered(high))
            middle = min(max(value, low + 1), high)
        turn += 1
        number = count_from(rank, count, unordered(middle))
        if number >= want:
            low = middle
        else:
            high = middle - 1
        if want <= number <= want + surplus:
            break
    return unordered(low)
