"""From the ranks of all tokens, picks the few that may be in a query's budget, and sums the mass of the
others.

The threshold is a rank that the highest ranks of `want` groups of tokens reach. These are `want` tokens, so
the `want` best of all tokens always reach it, too; and tokens above it lie in few groups.
"""

from __future__ import annotations

import numpy as np

from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.estimate import ranked_range
from adamas_kernels.cpu.floats import capped, capped_one, exp
from adamas_kernels.cpu.lanes import (
    LANES,
    compress,
    count_bits,
    lane_numbers,
    load,
    mask_bits,
    splat,
    store,
    sum_ints,
    sum_lanes,
    where,
)
from adamas_kernels.cpu.largest import LEAST, kth_largest, ordered, unordered
from adamas_kernels.cpu.records import (
    FACTS,
    OFFSET,
    REGION,
    SEGMENT,
    THRESHOLD,
    TOP,
    UNIT,
    floats_at,
    ints_at,
)
from adamas_kernels.cpu.shares import UNITS_PER_NAT, add_powers, exponents

SURPLUS = 8  # a threshold that passes up to 1/SURPLUS more than wanted is good enough
ZERO = np.float32(0)


@njit
def wanted(step, n):
    """How many of its ranked tokens query n attends to: the budget without sinks and recents."""
    seen = step.length + n + 1
    begin, end = ranked_range(step, n)
    return max(min(step.budget, seen) - (seen - end + begin), 0)


@njit
def find_threshold(step, scratch, place):
    """Write the threshold of one query to its facts. It is reached by a rank in at least as many groups as
    the query wants tokens, and at least one. With fewer groups, all tokens pass.
    """
    want = max(wanted(step, place % step.new), 1)
    peaks = floats_at(scratch.peaks + 4 * place * step.peak_room)
    found = kth_largest(peaks, step.segments * step.groups, want, want // SURPLUS)
    floats_at(scratch.facts + 4 * FACTS * place)[THRESHOLD] = found


@njit
def above(x):
    """The smallest float32 above x."""
    return unordered((0 if x == 0 else ordered(x)) + 1)  # -0 is ordered before +0


@njit
def estimated(step, facts, rank):
    """The estimated score of a token of one query with this rank."""
    score = rank * facts[UNIT] + facts[OFFSET]
    return capped_one(score, np.float32(step.softcap)) if step.softcap else score


@njit
def weights_of(step, facts, ranks, base):
    """exp(score - score of rank `base`) of LANES ranks, from estimates; 0 for lanes without a token."""
    unit = splat(facts[UNIT])
    if step.softcap:
        scores = capped(ranks * unit + splat(facts[OFFSET]), np.float32(step.softcap))
        weights = exp(scores - splat(estimated(step, facts, base)))
        return where(ranks > splat(LEAST), weights, splat(ZERO))
    return exp((ranks - splat(base)) * unit)


@njit
def keep_candidates(step, scratch, place, segment):
    """Move the ranks of one segment that reach one query's threshold to the front, and write their positions.

    Of ranks equal to the threshold, only the first ones that the query wants are kept, which bounds their
    number. Writes the count of kept ranks, and the mass of all others relative to the threshold.
    """
    facts = floats_at(scratch.facts + 4 * FACTS * place)
    threshold = facts[THRESHOLD]
    region = place * step.room + segment
    rank = floats_at(scratch.rank + 4 * region * REGION)
    position = ints_at(scratch.position + 4 * region * REGION)
    first, (_, end) = segment * SEGMENT, ranked_range(step, place % step.new)
    least, ties = threshold, max(wanted(step, place % step.new), 1)
    count, mass = 0, splat(ZERO)
    top, slope = ints_at(scratch.facts + 4 * FACTS * place)[TOP], splat(facts[UNIT] * UNITS_PER_NAT)
    high, low = splat(0), splat(0)
    for at in range(first, min(first + SEGMENT, end), LANES):
        ranks = load(rank, at - first)
        hits = ranks >= splat(least)
        if step.compensated:
            mass = mass + where(hits, splat(ZERO), weights_of(step, facts, ranks, threshold))
        if step.least_share:
            high, low = add_powers(high, low, exponents(ranks * slope), ranks > splat(LEAST), top)
        if mask_bits(hits):
            store(rank, count, compress(ranks, hits))
            store(position, count, compress(lane_numbers() + splat(at), hits))
            count += count_bits(mask_bits(hits))
            ties -= count_bits(mask_bits((ranks == splat(threshold)) & hits))
            if ties <= 0:
                least = above(threshold)
    ints_at(scratch.counts)[region] = count
    floats_at(scratch.masses)[region] = sum_lanes(mass)
    ints_at(scratch.highs)[region], ints_at(scratch.lows)[region] = sum_ints(high), sum_ints(low)
