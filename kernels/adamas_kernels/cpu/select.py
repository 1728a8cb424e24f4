"""Exact top-k among ranked tokens in order of position. Ties go to the lowest position."""

from __future__ import annotations

import math

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.candidates import estimated, wanted, weights_of
from adamas_kernels.cpu.estimate import ranked_range
from adamas_kernels.cpu.lanes import (
    LANES,
    count_bits,
    first_lane,
    load,
    lowest_bit,
    mask_bits,
    splat,
    store,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.largest import count_from, extremes, kth_largest, pad
from adamas_kernels.cpu.records import FACTS, REGION, THRESHOLD, floats_at, ints_at
from adamas_kernels.cpu.shares import reaching

ZERO = np.float32(0)


@njit
def take_best(rank, position, count, want, chosen, chosen_at):
    """Write the positions of the `want` best of `count` padded ranks to chosen[chosen_at:].

    Returns the lowest chosen rank (the highest of all if none is chosen), and the number of unchosen ranks
    equal to it.
    """
    if want == 0:
        _, edge = extremes(rank, count)
        return edge, count_from(rank, count, edge)
    bound = kth_largest(rank, count, want, 0)
    ties = 0
    for i in range(0, count, LANES):
        ties += count_bits(mask_bits(load(rank, i) == splat(bound)))
    surplus = count_from(rank, count, bound) - want  # ties without room: the last ones
    room = ties - surplus
    taken = 0
    edge = np.float32(np.inf)
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
    return edge, surplus


@njit
def mass_below(step, facts, rank, count, edge):
    """Softmax mass of one query's ranks below `edge`, relative to it."""
    mass = splat(ZERO)
    for i in range(0, count, LANES):
        ranks = load(rank, i)
        weight = weights_of(step, facts, ranks, edge)
        mass = mass + where(ranks < splat(edge), weight, splat(ZERO))
    return sum_lanes(mass)


@njit
def gather_candidates(step, scratch, place, ranked, ranked_at):
    """Gather one query's candidates side by side; returns their number."""
    region = place * step.room
    counts = ints_at(scratch.counts + 4 * region)
    total = 0
    for segment in range(step.segments):
        rank = floats_at(scratch.rank + 4 * (region + segment) * REGION)
        position = ints_at(scratch.position + 4 * (region + segment) * REGION)
        for i in range(0, counts[segment], LANES):  # the next segment's overwrite the surplus lanes
            store(ranked, total + i, load(rank, i))
            store(ranked_at, total + i, load(position, i))
        total += counts[segment]
    return total


@njit
def select(step, scratch, place):
    """Write to one query's `chosen` the positions that it attends to.

    Returns their number and the logarithm of the estimated softmax mass of the others.
    """
    chosen = ints_at(scratch.chosen + 4 * place * scratch.row)
    facts = floats_at(scratch.facts + 4 * FACTS * place)
    ranked, ranked_at = floats_at(scratch.ranked), ints_at(scratch.ranked_at)
    n = place % step.new
    seen, want = step.length + n + 1, wanted(step, n)
    begin, end = ranked_range(step, n)
    forced = begin + seen - end
    for i in range(begin):
        chosen[i] = i
    for i in range(end, seen):
        chosen[begin + i - end] = i
    count = gather_candidates(step, scratch, place, ranked, ranked_at)
    log_mass = -np.inf
    if count < want:  # NaN keys or queries give ranks that no comparison passes
        for i in range(forced + count, forced + want):
            chosen[i] = 0
    if count > 0:
        pad(ranked, count)
        if step.least_share:
            want = reaching(step, scratch, place, ranked, count, want, forced)
        edge, surplus = take_best(ranked, ranked_at, count, want, chosen, forced)
        if step.compensated and seen > forced + want:
            mass = 0.0
            masses = floats_at(scratch.masses + 4 * place * step.room)
            for segment in range(step.segments):
                mass += masses[segment]
            mass *= first_lane(weights_of(step, facts, splat(facts[THRESHOLD]), edge))
            mass += mass_below(step, facts, ranked, count, edge) + surplus
            if mass > 0:
                log_mass = math.log(mass) + estimated(step, facts, edge)
    ints_at(scratch.attended)[place] = forced + want
    return forced + want, log_mass
