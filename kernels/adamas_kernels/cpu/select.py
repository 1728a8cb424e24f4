"""Exact top-k among ranked tokens in order of position. Ties go to the lowest position."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from adamas_kernels.cpu.estimate import OFFSET, SPREAD, THRESHOLD, UNIT, rank_all
from adamas_kernels.cpu.floats import exp, exp_one, float_bits, float_from_bits
from adamas_kernels.cpu.lanes import (
    LANES,
    count_bits,
    load,
    lowest_bit,
    mask_bits,
    splat,
    store,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.memory import FACTS, floats_at, ints_at
from adamas_kernels.ops import UNPREDICTED

LOWEST = np.float32(UNPREDICTED)
LEAST = np.float32(-np.inf)
ZERO, ONE = np.float32(0), np.float32(1)


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
    """Complete the last block of lanes with ranks below all others."""
    store(rank, count, splat(LEAST))


@njit
def count_from(rank, count, least):
    """How many ranks are at least `least`."""
    number = 0
    for i in range(0, count, LANES):
        number += count_bits(mask_bits(load(rank, i) >= splat(least)))
    return number


@njit
def extremes(rank, count):
    """The least and the greatest of the ranks."""
    lowest, highest = rank[0], rank[0]
    for i in range(count):
        lowest = min(lowest, rank[i])
        highest = max(highest, rank[i])
    return lowest, highest


@njit
def kth_largest(rank, count, want):
    """A rank that exactly `want` are at or above, or that of the want-th largest; by halving an interval.

    1 <= want <= count.
    """
    lowest, highest = extremes(rank, count)
    low, high = ordered(lowest), ordered(highest)
    while low < high:
        middle = low + (high - low + 1) // 2
        number = count_from(rank, count, unordered(middle))
        if number >= want:
            low = middle
        else:
            high = middle - 1
        if number == want:
            break
    return unordered(low)


@njit
def take_best(rank, position, count, want, chosen, chosen_at):
    """Write the positions of the `want` best of `count` padded ranks to chosen[chosen_at:].

    Returns the least chosen rank (with none chosen the highest of all), the mean excess of the chosen ones
    over it, and how many ranks that equal it are left.
    """
    if want == 0:
        _, edge = extremes(rank, count)
        return edge, ZERO, count_from(rank, count, edge)
    bound = kth_largest(rank, count, want)
    ties = 0
    for i in range(0, count, LANES):
        ties += count_bits(mask_bits(load(rank, i) == splat(bound)))
    surplus = count_from(rank, count, bound) - want  # ties that find no room: the last ones
    room = ties - surplus
    taken = 0
    edge = np.float32(np.inf)
    total = 0.0
    for i in range(0, count, LANES):
        best = mask_bits(load(rank, i) >= splat(bound))
        while best and taken < want:
            at = i + lowest_bit(best)
            best &= best - 1
            if rank[at] == bound:
                if room == 0:
                    continue
                room -= 1
            chosen[chosen_at + taken] = position[at]
            taken += 1
            edge = min(edge, rank[at])
            total += rank[at]
    return edge, np.float32(total / want - edge), surplus


@njit
def mass_below(rank, count, edge, unit):
    """Softmax mass of the ranks below `edge`, relative to it."""
    mass = splat(ZERO)
    for i in range(0, count, LANES):
        ranks = load(rank, i)
        weight = exp((ranks - splat(edge)) * splat(unit))
        mass = mass + where(ranks < splat(edge), weight, splat(ZERO))
    return sum_lanes(mass)


@njit
def gather_candidates(step, scratch, place, ranked, ranked_at):
    """One query's candidates side by side, or -1 where a segment found more than it had room for."""
    region = place * step.segments
    counts = ints_at(scratch.counts + 4 * region)
    total = 0
    for segment in range(step.segments):
        count = counts[segment]
        if count > step.room:
            return -1
        rank = floats_at(scratch.rank + 4 * (region + segment) * step.room)
        position = ints_at(scratch.position + 4 * (region + segment) * step.room)
        for i in range(count):
            ranked[total + i] = rank[i]
            ranked_at[total + i] = position[i]
        total += count
    return total


@njit
def predict(edge, excess, want, spread):
    """The threshold, in units of `spread`, that lets the wanted number of candidates pass.

    The best tokens' mean excess over the last of them tells the slope of the tail.
    """
    guess = edge + excess * np.float32(math.log(max(want, 1) / wanted_candidates(want)))
    return guess / (spread if spread > 0 else ONE)


@njit
def wanted_candidates(want):
    """Enough that `want` tokens pass when the scores shift a little."""
    return 2 * want + 4 * LANES


@njit
def select(form, step, layer, scratch, b, head, place):
    """Write the positions that one query attends to to its `chosen`, and predict its head's next threshold.

    Returns how many they are and the logarithm of the estimated softmax mass of the others.
    """
    chosen = ints_at(scratch.chosen + 4 * place * scratch.row)
    facts = floats_at(scratch.facts + 4 * FACTS * place)
    ranked, ranked_at = floats_at(scratch.ranked), ints_at(scratch.ranked_at)
    seen = step.length + place % step.new + 1
    sinks = min(step.sinks, seen)
    recent = max(sinks, seen - step.recents)
    forced = sinks + seen - recent
    for i in range(sinks):
        chosen[i] = i
    for i in range(recent, seen):
        chosen[sinks + i - recent] = i
    want = max(min(step.budget, seen) - forced, 0)
    mass = 0.0
    count = gather_candidates(step, scratch, place, ranked, ranked_at)
    if count < max(want, 1):
        count = rank_all(form, step, layer, scratch, b, head, place, recent, ranked, ranked_at)
    else:
        masses = floats_at(scratch.masses + 4 * place * step.segments)
        for segment in range(step.segments):
            mass += masses[segment]
    edge, excess, surplus = LOWEST, ZERO, 0
    if count > 0:
        pad(ranked, count)
        edge, excess, surplus = take_best(ranked, ranked_at, count, want, chosen, forced)
    if place % step.new == step.new - 1:
        few = seen - forced <= wanted_candidates(want)
        guess = LOWEST if few else predict(edge, excess, want, facts[SPREAD])
        floats_at(layer.prediction)[place // step.new] = guess
    log_mass = -np.inf
    if step.compensated and seen > forced + want:
        mass *= exp_one((facts[THRESHOLD] - edge) * facts[UNIT])
        mass += mass_below(ranked, count, edge, facts[UNIT]) + surplus
        if mass > 0:
            log_mass = math.log(mass) + edge * facts[UNIT] + facts[OFFSET]
    return forced + want, log_mass
