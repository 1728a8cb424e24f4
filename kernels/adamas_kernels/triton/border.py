"""Finds the border of the best of many tokens. A round counts how many tokens reach each of four ranks or
positions, because exchanging counts between warps takes longer than counting.

Tokens are given as a tuple of tensors. Tensors of WARP numbers are held by every warp as a whole, and no warp
waits for another. There may be more tokens in memory, extras, from `listed` on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.triton.coding import LOWEST

WARP = tl.constexpr(32)
GUESSES = tl.constexpr(3)  # rounds of interpolation before a search also divides its interval evenly
SAMPLE_ERROR = tl.constexpr(3)  # places: about the standard deviation of a quantile of WARP numbers
COUNT_BITS = tl.constexpr(16)  # of one of two counts in an int32
COUNT_MASK = tl.constexpr((1 << 16) - 1)
EXTRAS = tl.constexpr(256)  # read at a time
NONE = tl.constexpr(-(2**31))  # below all numbers from `ordered`


@triton.jit
def ordered(x):
    """float32 -> int32 with the same order; both zeros are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(key):
    """The inverse of `ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def larger_of_both(a, b, other_a, other_b):
    """The elementwise maximum of two pairs."""
    return tl.maximum(a, other_a), tl.maximum(b, other_b)


@triton.jit
def sum_of_both(a, b, other_a, other_b):
    """The elementwise sum of two pairs."""
    return a + other_a, b + other_b


@triton.jit
def sums(a, b):
    """The sums of two int32 tensors of one shape."""
    if a.shape[0] == WARP:
        totals = tl.sum(a, axis=0), tl.sum(b, axis=0)
    else:
        totals = tl.reduce((a, b), 0, sum_of_both)  # one exchange between the warps for both
    return totals


@triton.jit
def maxima(a, b):
    """The maxima of two int32 tensors of one shape."""
    if a.shape[0] == WARP:
        largest = tl.max(a, axis=0), tl.max(b, axis=0)
    else:
        largest = tl.reduce((a, b), 0, larger_of_both)
    return largest


@triton.jit
def load_extras(extras_ptr, slot, extras, other):
    """Extras of these slots, bypassing the L1 cache because other threads stored them."""
    return tl.load(extras_ptr + slot, mask=slot < extras, other=other, cache_modifier=".cg")


@triton.jit
def distance(low, high):
    """The number of floats from `low` to `high`, as uint32."""
    return (ordered(high) - ordered(low)).to(tl.uint32, bitcast=True)


@triton.jit
def logarithm(number):
    """Approximately log2 of a positive float32, up to a factor and an addend: its bits as a number."""
    return number.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def sampled(sample, low, high, share):
    """Four ascending ranks between `low` and `high`: around the one that a share of the int32 `sample`
    [WARP], see `ordered`, is below. The third follows the second, which ends the search if that one has many
    ties.
    """
    key, lane = tl.sort(sample), tl.arange(0, WARP)
    place = (share * WARP + 0.5).to(tl.int32) - 1
    place, least = tl.maximum(place, 0), ordered(low)
    a = tl.maximum(tl.max(tl.where(lane == tl.maximum(place - SAMPLE_ERROR, 0), key, NONE), axis=0), least)
    b = tl.maximum(tl.max(tl.where(lane == place, key, NONE), axis=0), least)
    c = tl.minimum(b + 1, ordered(high))
    upper = tl.minimum(place + SAMPLE_ERROR, WARP - 1)
    d = tl.maximum(tl.max(tl.where(lane == upper, key, NONE), axis=0), c)
    return unordered(a), unordered(b), unordered(c), unordered(d)


@triton.jit
def guessed(low, high, reached, above, target, step):
    """Four ascending ranks between `low`, which `reached` tokens reach, and `high`, which `above` do: three
    of them, a step apart, where `target` tokens would reach them if the logarithm of this number were linear
    in the rank, and the last one where they would if the number itself were.
    """
    span = logarithm(reached)
    near = (span - logarithm(target)) / (span - logarithm(tl.maximum(above, 0.5)))
    near = tl.minimum(tl.maximum(near, 1.1 * step), 1 - 3 * step)
    far = tl.minimum(tl.maximum((reached - target) / (reached - above), near + 2 * step), 0.999)
    whole = high - low
    return low + (near - step) * whole, low + near * whole, low + (near + step) * whole, low + far * whole


@triton.jit
def quartiles(low, high):
    """The next float after `low`, and the quartiles of the floats from `low` to `high`."""
    quarter = tl.maximum(distance(low, high) // 4, 1).to(tl.int32)
    key, end = ordered(low), ordered(high)
    a, b = unordered(key + 1), unordered(key + quarter)
    return a, b, unordered(tl.minimum(key + 2 * quarter, end)), unordered(tl.minimum(key + 3 * quarter, end))


@triton.jit
def reach_two(rank, one, other):
    """Which ranks reach each of two bounds, in an int32."""
    return (rank >= one).to(tl.int32) + ((rank >= other).to(tl.int32) << COUNT_BITS)


@triton.jit
def count_reaching(ranks, extra_rank, listed, extras, a, b, c, d):
    """How many ranks reach each of four bounds; two counts per int32."""
    lower, upper = reach_two(ranks[0], a, b), reach_two(ranks[0], c, d)
    for i in tl.static_range(1, len(ranks)):
        lower += reach_two(ranks[i], a, b)
        upper += reach_two(ranks[i], c, d)
    lower, upper = sums(lower, upper)
    for start in range(listed, extras, EXTRAS):
        more = load_extras(extra_rank, start + tl.arange(0, EXTRAS), extras, LOWEST)
        lower += tl.sum(reach_two(more, a, b), axis=0)
        upper += tl.sum(reach_two(more, c, d), axis=0)
    return lower, upper


@triton.jit
def tightened(ranks, extra_rank, listed, extras, low, high):
    """The lowest rank that reaches `low`, and the float after the highest that does not reach `high`."""
    lowest, highest = tl.where(ranks[0] >= low, ranks[0], high), tl.where(ranks[0] < high, ranks[0], low)
    for i in tl.static_range(1, len(ranks)):
        lowest = tl.minimum(lowest, tl.where(ranks[i] >= low, ranks[i], high))
        highest = tl.maximum(highest, tl.where(ranks[i] < high, ranks[i], low))
    not_least, most = maxima(~ordered(lowest), ordered(highest))
    for start in range(listed, extras, EXTRAS):
        more = load_extras(extra_rank, start + tl.arange(0, EXTRAS), extras, LOWEST)
        not_least = tl.maximum(not_least, tl.max(~ordered(tl.where(more >= low, more, high)), axis=0))
        most = tl.maximum(most, tl.max(ordered(tl.where(more < high, more, low)), axis=0))
    return unordered(~not_least), unordered(most + 1)


@triton.jit
def find_border(
    ranks, extra_rank, listed, extras, low, high, reached, want, limit, sample, share, SAMPLED: tl.constexpr
):
    """A rank that at least `want` tokens reach, and at most `limit` unless more have the same rank; how many
    reach it, and how many are above it if more than `limit` reach it.

    `reached` tokens reach `low`, and none `high`. The first ranks that are tried are SAMPLED, see `sampled`,
    or, like those after them, interpolated. Later rounds begin at ranks that exist, so that ties and gaps end
    the search.
    """
    above = tl.zeros((), tl.int32)
    target = 0.5 * (want + limit).to(tl.float32)
    tries = 0
    while (reached > limit) & (distance(low, high) > 1):
        if tries >= GUESSES:
            low, high = tightened(ranks, extra_rank, listed, extras, low, high)
        # The expected random deviation of the number of ranks, unless the target is wide.
        step = tl.minimum(0.35 * tl.rsqrt((reached - above).to(tl.float32)), 0.2)
        if SAMPLED:
            step = tl.maximum(step, 0.05)
        a, b, c, d = guessed(low, high, reached.to(tl.float32), above.to(tl.float32), target, step)
        if tries >= GUESSES:
            next_a, quarter, half, three = quartiles(low, high)
            even = (tries - GUESSES) % 2 == 0
            a, b = next_a, tl.where(even, quarter, b)
            c, d = tl.where(even, half, c), tl.where(even, three, d)
        if SAMPLED:
            is_first = tries == 0
            if is_first:
                a, b, c, d = sampled(sample, low, high, share)
        lower, upper = count_reaching(ranks, extra_rank, listed, extras, a, b, c, d)
        for i in tl.static_range(4):  # the last that enough tokens reach
            number = ((lower, upper)[i // 2] >> (COUNT_BITS * (i % 2))) & COUNT_MASK
            low = tl.where(number >= want, (a, b, c, d)[i], low)
            reached = tl.where(number >= want, number, reached)
        for i in tl.static_range(3, -1, -1):  # the first that too few tokens reach
            number = ((lower, upper)[i // 2] >> (COUNT_BITS * (i % 2))) & COUNT_MASK
            high = tl.where(number < want, (a, b, c, d)[i], high)
            above = tl.where(number < want, number, above)
        tries += 1
    return low, reached, above


@triton.jit
def up_to_two(at, one, other):
    """Which positions are at most each of two, in an int32."""
    return (at <= one).to(tl.int32) + ((at <= other).to(tl.int32) << COUNT_BITS)


@triton.jit
def positions_between(before, last, below, reached, target, tries):
    """Four positions after `before`, up to which there are `below` ties, and before `last`, up to which there
    are `reached`: around where there are `target` if they are evenly spread, or evenly spaced.
    """
    number = (reached - below).to(tl.float32)
    step = tl.minimum(0.35 * tl.rsqrt(number), 0.2)
    near = (target - below.to(tl.float32)) / number
    near = tl.minimum(tl.maximum(near, 1.6 * step), 1 - 1.6 * step)
    near, step = tl.where(tries < GUESSES, near, 0.5), tl.where(tries < GUESSES, step, 0.2)
    whole = (last - before).to(tl.float32)
    most = last - before - 1
    places = ()
    for i in tl.static_range(4):
        place = (whole * (near + (i - 1.5) * step)).to(tl.int32)
        places += (before + tl.minimum(tl.maximum(place, 1), most),)
    return places


@triton.jit
def last_of_ties(ranks, ats, extra_rank, extra_at, listed, extras, tied, number, want, limit):
    """A position up to which there are at least `want` and at most `limit` of the `number` tokens of rank
    `tied`; ats: positions like ranks.
    """
    none = 0x7FFFFFFF
    places = ()
    for i in tl.static_range(len(ranks)):
        places += (tl.where(ranks[i] == tied, ats[i], none),)
    # Ties may be close together: begin at the first and the last.
    lowest, highest = places[0], tl.where(places[0] < none, places[0], -1)
    for i in tl.static_range(1, len(ranks)):
        lowest = tl.minimum(lowest, places[i])
        highest = tl.maximum(highest, tl.where(places[i] < none, places[i], -1))
    not_first, last = maxima(~lowest, highest)
    for start in range(listed, extras, EXTRAS):
        slot = start + tl.arange(0, EXTRAS)
        ties = load_extras(extra_rank, slot, extras, LOWEST) == tied
        at = load_extras(extra_at, slot, extras, 0)
        not_first = tl.maximum(not_first, tl.max(tl.where(ties, ~at, ~none), axis=0))
        last = tl.maximum(last, tl.max(tl.where(ties, at, -1), axis=0))
    before, below, reached = ~not_first - 1, tl.zeros((), tl.int32), number
    target = 0.5 * (want + limit).to(tl.float32)
    tries = 0
    while (reached > limit) & (last - before > 1):
        tried = positions_between(before, last, below, reached, target, tries)
        lower, upper = up_to_two(places[0], tried[0], tried[1]), up_to_two(places[0], tried[2], tried[3])
        for i in tl.static_range(1, len(ranks)):
            lower += up_to_two(places[i], tried[0], tried[1])
            upper += up_to_two(places[i], tried[2], tried[3])
        lower, upper = sums(lower, upper)
        for start in range(listed, extras, EXTRAS):
            slot = start + tl.arange(0, EXTRAS)
            ties = load_extras(extra_rank, slot, extras, LOWEST) == tied
            at = tl.where(ties, load_extras(extra_at, slot, extras, 0), none)
            lower += tl.sum(up_to_two(at, tried[0], tried[1]), axis=0)
            upper += tl.sum(up_to_two(at, tried[2], tried[3]), axis=0)
        for i in tl.static_range(4):  # the last with too few up to it
            found = ((lower, upper)[i // 2] >> (COUNT_BITS * (i % 2))) & COUNT_MASK
            before = tl.where(found < want, tried[i], before)
            below = tl.where(found < want, found, below)
        for i in tl.static_range(3, -1, -1):  # the first with enough
            found = ((lower, upper)[i // 2] >> (COUNT_BITS * (i % 2))) & COUNT_MASK
            last = tl.where(found >= want, tried[i], last)
            reached = tl.where(found >= want, found, reached)
        tries += 1
    return last
