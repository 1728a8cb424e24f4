"""Exact top-k from the groups of the estimate, and the softmax mass of all other tokens. Ties go to the
lowest position.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.apart import KEYS, codes_of_head, start_of_rows
from adamas_kernels.triton.coding import FACTS, LOWEST
from adamas_kernels.triton.ranking import load_words, rank_tokens
from adamas_kernels.triton.shares import LEAST_ATTENDED, SHARES, UNITS_PER_NAT, least_exponent, reaching
from adamas_kernels.triton.shortlist import (
    PLACES,
    base_of,
    curve_of,
    dealt,
    position_of_first,
    position_of_second,
    weight_of,
)

GUESSES = tl.constexpr(4)  # rounds of interpolation before a search divides its interval evenly
COUNT_BITS = tl.constexpr(16)  # of one of two counts in an int32
COUNT_MASK = tl.constexpr((1 << 16) - 1)
EXTRAS = tl.constexpr(256)  # read at a time


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
def forced_and_wanted(seen, sinks, recents, budget):
    """For `seen` tokens: the number of sinks, the position of the first recent, the number of both together,
    and how many more tokens the budget allows.
    """
    first_sinks = tl.minimum(sinks, seen)
    first_recent = tl.maximum(first_sinks, seen - recents)
    forced = first_sinks + seen - first_recent
    return first_sinks, first_recent, forced, tl.maximum(tl.minimum(budget, seen) - forced, 0)


@triton.jit
def reaches(rank, at, least, last):
    """Which tokens are at least as good as the one with rank `least` at position `last`."""
    return (rank > least) | ((rank == least) & (at <= last))


@triton.jit
def larger_of_both(a, b, other_a, other_b):
    """The elementwise maximum of two pairs."""
    return tl.maximum(a, other_a), tl.maximum(b, other_b)


@triton.jit
def sum_of_both(a, b, other_a, other_b):
    """The elementwise sum of two pairs."""
    return a + other_a, b + other_b


@triton.jit
def distance(low, high):
    """The number of floats from `low` to `high`, as uint32."""
    return (ordered(high) - ordered(low)).to(tl.uint32, bitcast=True)


@triton.jit
def logarithm(number):
    """Approximately log2 of a positive float32, up to a factor and an addend: its bits as a number."""
    return number.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def pivots(low, high, share, step, tries):
    """Four ascending ranks between `low` and `high`: around a share of the way, in steps, or the next float
    and the quartiles of the floats between them.
    """
    if tries < GUESSES:
        near = tl.minimum(tl.maximum(share, 1.65 * step), 1 - 2.6 * step)
        span = high - low
        a, b = low + (near - 1.5 * step) * span, low + (near - 0.5 * step) * span
        c, d = low + (near + 0.5 * step) * span, low + (near + 1.5 * step) * span
    else:
        quarter = tl.maximum(distance(low, high) // 4, 1).to(tl.int32)
        key, end = ordered(low), ordered(high)
        a, b = unordered(key + 1), unordered(key + quarter)
        c, d = unordered(tl.minimum(key + 2 * quarter, end)), unordered(tl.minimum(key + 3 * quarter, end))
    return a, b, c, d


@triton.jit
def reach_two(rank, one, other):
    """Which ranks reach each of two bounds, in an int32."""
    return (rank >= one).to(tl.int32) + ((rank >= other).to(tl.int32) << COUNT_BITS)


@triton.jit
def count_reaching(rank, second, extra_rank, listed, extras, a, b, c, d, PAIRS: tl.constexpr):
    """How many of the ranks, of the seconds if there are PAIRS, and of the extras from `listed` on reach each
    of four bounds; two counts per int32.
    """
    lower, upper = reach_two(rank, a, b), reach_two(rank, c, d)
    if PAIRS:
        lower += reach_two(second, a, b)
        upper += reach_two(second, c, d)
    lower, upper = tl.reduce((lower, upper), 0, sum_of_both)  # one exchange between the warps for both
    for start in range(listed, extras, EXTRAS):
        more = load_extras(extra_rank, start + tl.arange(0, EXTRAS), extras, LOWEST)
        lower += tl.sum(reach_two(more, a, b), axis=0)
        upper += tl.sum(reach_two(more, c, d), axis=0)
    return lower, upper


@triton.jit
def load_extras(extras_ptr, slot, extras, other):
    """Extras of these slots, bypassing the L1 cache because other threads stored them."""
    return tl.load(extras_ptr + slot, mask=slot < extras, other=other, cache_modifier=".cg")


@triton.jit
def lowest_reaching(rank, second, extra_rank, listed, extras, low, high, PAIRS: tl.constexpr):
    """The lowest of all ranks that reach `low`, or `high` if none does; none reaches `high`."""
    lowest = tl.where(rank >= low, rank, high)
    if PAIRS:
        lowest = tl.minimum(lowest, tl.where(second >= low, second, high))
    key = tl.min(ordered(lowest), axis=0)
    for start in range(listed, extras, EXTRAS):
        more = load_extras(extra_rank, start + tl.arange(0, EXTRAS), extras, LOWEST)
        key = tl.minimum(key, tl.min(ordered(tl.where(more >= low, more, high)), axis=0))
    return unordered(key)


@triton.jit
def find_border(
    rank, second, extra_rank, listed, extras, low, high, reached, want, limit, PAIRS: tl.constexpr
):
    """A rank that at least `want` tokens reach, and at most `limit` unless more have the same rank; how many
    reach it, and how many are above it if more than `limit` reach it.

    `reached` tokens reach `low`, and none `high`. Each round tries four ranks, because exchanging counts
    takes longer than counting. They lie where the border would be if the logarithm of the number of tokens
    that reach a rank were linear in the rank.
    """
    above = tl.zeros((), tl.int32)
    beyond = high
    tries = 0
    while (reached > limit) & (distance(low, high) > 1):
        if tries >= GUESSES:  # ends the search if few ranks have many ties: the next rank is too high
            low = lowest_reaching(rank, second, extra_rank, listed, extras, low, beyond, PAIRS)
        span = logarithm(reached.to(tl.float32))
        share = span - logarithm(0.5 * (want + limit).to(tl.float32))
        share /= span - logarithm(tl.maximum(above.to(tl.float32), 0.5))
        if PAIRS:  # many ranks, and a wide target for their number: not linear over a long range
            step = tl.where(tries == 0, 0.15, 0.05)
        else:  # the expected random deviation of the number of ranks
            step = tl.minimum(0.35 * tl.rsqrt((reached - above).to(tl.float32)), 0.2)
        a, b, c, d = pivots(low, high, share, step, tries)
        lower, upper = count_reaching(rank, second, extra_rank, listed, extras, a, b, c, d, PAIRS)
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
def last_of_ties(
    rank, at, second, second_at, extra_rank, extra_at, listed, extras, tied, end, want, PAIRS: tl.constexpr
):
    """The lowest position up to which there are `want` tokens of rank `tied`."""
    before = tl.full((), -1, tl.int32)
    last = end
    at = tl.where(rank == tied, at, end)
    if PAIRS:
        second_at = tl.where(second == tied, second_at, end)
    while last - before > 1:
        between = before + (last - before) // 2
        there = (at <= between).to(tl.int32)
        if PAIRS:
            there += (second_at <= between).to(tl.int32)
        number = tl.sum(there, axis=0)
        for start in range(listed, extras, EXTRAS):
            slot = start + tl.arange(0, EXTRAS)
            ties = load_extras(extra_rank, slot, extras, LOWEST) == tied
            ties &= load_extras(extra_at, slot, extras, 0) <= between
            number += tl.sum(ties.to(tl.int32), axis=0)
        enough = number >= want
        before, last = tl.where(enough, before, between), tl.where(enough, between, last)
    return last


@triton.jit
def look_again(
    again, place, count, turns_ptr, groups_ptr, extra_rank, extra_at, codes, codes_w, scale, words_ptr, row,
    total, sinks, end, least, last,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Rank all tokens of the `count` groups in `again` [GROUPS], whose indices among these are `place`, and
    write those that reach (least, last) and are no group's first or second; returns their number.
    """
    tl.store(groups_ptr + place, tl.arange(0, GROUPS), mask=again)
    tl.debug_barrier()
    rows = row + tl.zeros((1,), tl.int32)
    totals = total + tl.zeros((1,), tl.float32)
    most_turns = tl.cdiv(end, GROUPS)
    extras = tl.zeros((), tl.int32)
    for start in range(0, count * most_turns, BLOCK):
        item = start + tl.arange(0, BLOCK)
        there = item < count * most_turns
        group = tl.load(groups_ptr + item // most_turns, mask=there, other=0, cache_modifier=".cg")
        at = dealt(item % most_turns, group, GROUPS)
        there &= (at >= sinks) & (at < end)
        at = tl.where(there, at, 0)
        turns = tl.load(turns_ptr + group, mask=there, other=0)
        words = load_words(codes, codes_w, at, P)
        weight = tl.load(scale + at).to(tl.float32)
        rank = rank_tokens(words, weight, (), words_ptr, rows, totals, 1, BLOCK, P, MANHATTAN, FAST, False)
        rank = tl.reshape(rank, (BLOCK,))
        there &= at != position_of_first(turns, group, GROUPS)
        there &= at != position_of_second(turns, group, GROUPS)
        there &= reaches(rank, at, least, last)
        slot = extras + tl.cumsum(there.to(tl.int32), axis=0) - 1
        tl.store(extra_rank + slot, rank, mask=there)
        tl.store(extra_at + slot, at, mask=there)
        extras += tl.sum(there.to(tl.int32), axis=0)
    return extras


@triton.jit
def list_reaching(
    sums_ptr, listed, forced, extras, best, turns_ptr, extra_rank, extra_at, list_rank, list_at,
    GROUPS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Ranks and positions of LIST slots: `forced` empty slots, then the `listed` firsts and seconds of groups
    that reach a border, then as many extras as fit. Ranks of empty slots are LOWEST.

    Each slot finds its group by binary search in the running counts of the groups.
    """
    slot = tl.arange(0, LIST) - forced
    group = tl.zeros((LIST,), tl.int32)
    for halving in tl.static_range(1, 16):
        if GROUPS >> halving > 0:
            passed = (tl.load(sums_ptr + group + ((GROUPS >> halving) - 1)) & COUNT_MASK) <= slot
            group += tl.where(passed, GROUPS >> halving, 0)
    there = (slot >= 0) & (slot < listed)
    before = tl.load(sums_ptr + group - 1, mask=there & (group > 0), other=0) & COUNT_MASK
    is_second = slot > before
    rank = tl.load(best + tl.where(is_second, GROUPS, 0) + group, mask=there, other=LOWEST)
    turns = tl.load(turns_ptr + group, mask=there, other=0)
    first_at, second_at = position_of_first(turns, group, GROUPS), position_of_second(turns, group, GROUPS)
    at = tl.where(is_second, second_at, first_at)
    if extras > 0:
        extra = (slot - listed).to(tl.uint32, bitcast=True)  # very large before the first
        more = extra < extras.to(tl.uint32)
        rank = tl.where(more, tl.load(extra_rank + extra, mask=more, other=0.0, cache_modifier=".cg"), rank)
        at = tl.where(more, tl.load(extra_at + extra, mask=more, other=0, cache_modifier=".cg"), at)
    # Through memory: otherwise the compiler repeats all of this in every lane that later holds part of a key.
    slot = tl.arange(0, LIST)
    tl.store(list_rank + slot, rank)
    tl.store(list_at + slot, at)
    tl.debug_barrier()
    return tl.load(list_rank + slot), tl.load(list_at + slot)


@triton.jit
def shortlist(
    codes, codes_w, scale, words_ptr, fact, best, turns_ptr, masses, sums_ptr, groups_ptr,
    extra_rank, extra_at, list_rank, list_at, again_ptr, row, sinks, end, forced, want, cap,
    GROUPS: tl.constexpr, LIST: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """List slightly more than the best `want` of a query's tokens. Returns ranks and positions [LIST] like
    `list_reaching`, the number of extras and how many of them are listed; a rank that all listed tokens
    reach, one that none reaches, and how many reach the former, for `exact_border`; the softmax mass of all
    tokens in LIST parts, the rank that it is relative to, and how scores depend on ranks, see `curve_of`.

    Finds a border that this many firsts and seconds of groups reach, and lists the tokens that reach it. In
    groups whose third reaches it, too, all further tokens that reach it are extras.

    Pointers are to the query's own data; `row` is its number. again_ptr gets the number of re-ranked groups.
    """
    group = tl.arange(0, GROUPS)
    # Load all at once, needed or not: together they take as long as one.
    first = tl.load(best + group)
    second = tl.load(best + GROUPS + group)
    third = tl.load(best + 2 * GROUPS + group)
    turns = tl.load(turns_ptr + group)
    mass = first
    if MASS:
        mass = tl.load(masses + group)
    curve = curve_of(fact, cap, CAPPED)
    total = tl.load(fact + 2)
    key = ordered(first)
    highest, not_lowest = tl.reduce((key, ~tl.where(first > LOWEST, key, 0x7FFFFFFF)), 0, larger_of_both)
    top, beyond = unordered(highest), unordered(highest + 1)
    masses_left = tl.zeros((LIST,), tl.float32)
    if MASS:
        weight = mass
        if not CAPPED:
            weight *= weight_of(first, top, curve, CAPPED)
        weight = tl.where(first > LOWEST, weight, 0.0)
        masses_left = tl.sum(tl.reshape(weight, (GROUPS // LIST, LIST), can_reorder=True), axis=0)
    none, extras, count = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    # All firsts reach the lowest of them, and at most all seconds do: enough to begin with. If all fit the
    # list, there is nothing to search for.
    limit = LIST - LIST // 8 - forced
    reached = tl.minimum(2 * GROUPS, tl.maximum(end - sinks, 0))
    low = tl.where(reached > limit, unordered(~not_lowest), 0.5 * LOWEST)
    low, reached, above = find_border(
        first, second, extra_rank, none, none, low, beyond, reached, want, limit, True
    )
    last = end
    first_reaches, second_reaches = first >= low, second >= low
    if reached > limit:  # too many ties: take just enough, at the lowest positions
        first_at = position_of_first(turns, group, GROUPS)
        second_at = position_of_second(turns, group, GROUPS)
        last = last_of_ties(
            first, first_at, second, second_at, extra_rank, extra_at, none, none, low, end, want - above, True
        )
        first_reaches = reaches(first, first_at, low, last)
        second_reaches = reaches(second, second_at, low, last)
    again = second_reaches & (third >= low)  # the third's position is unknown: it may tie
    number = first_reaches.to(tl.int32) + second_reaches.to(tl.int32) + (again.to(tl.int32) << COUNT_BITS)
    sums = tl.cumsum(number, axis=0)
    tl.store(sums_ptr + group, sums)
    tl.debug_barrier()
    sum_of_all = tl.load(sums_ptr + GROUPS - 1)
    listed, count = sum_of_all & COUNT_MASK, sum_of_all >> COUNT_BITS
    if count > 0:
        extras = look_again(
            again, (sums >> COUNT_BITS) - 1, count, turns_ptr, groups_ptr, extra_rank, extra_at,
            codes, codes_w, scale, words_ptr, row, total, sinks, end, low, last,
            GROUPS, BLOCK, P, MANHATTAN, FAST,
        )  # fmt: skip
        tl.debug_barrier()
    tl.store(again_ptr + row, count)
    rank, at = list_reaching(
        sums_ptr, listed, forced, extras, best, turns_ptr, extra_rank, extra_at, list_rank, list_at,
        GROUPS, LIST,
    )  # fmt: skip
    held = tl.minimum(extras, LIST - forced - listed)
    return rank, at, extras, held, low, beyond, listed + extras, masses_left, top, curve


@triton.jit
def exact_border(rank, at, extra_rank, extra_at, held, extras, low, beyond, reached, end, want):
    """Rank and position of the last of the `want` best among listed tokens and extras from `held` on."""
    low, reached, above = find_border(
        rank, rank, extra_rank, held, extras, low, beyond, reached, want, want, False
    )
    last = end
    if reached > want:
        last = last_of_ties(
            rank, at, rank, at, extra_rank, extra_at, held, extras, low, end, want - above, False
        )
    return low, tl.where(want > 0, last, -1)


@triton.jit
def bounded_want(least, units, forced, rank, extra_rank, held, extras, want):
    """How many of the `want` best among listed tokens and extras from `held` on are attended to, besides
    `forced` others: those whose exponent is at least `least`, and at least LEAST_ATTENDED in total.
    """
    number = tl.sum(reaching(rank, units, least).to(tl.int32), axis=0)
    for start in range(held, extras, EXTRAS):
        more = load_extras(extra_rank, start + tl.arange(0, EXTRAS), extras, LOWEST)
        number += tl.sum(reaching(more, units, least).to(tl.int32), axis=0)
    return tl.minimum(want, tl.maximum(number + forced, LEAST_ATTENDED) - forced)


@triton.jit
def mass_of(rank, best, top, curve, CAPPED: tl.constexpr):
    """The estimated softmax mass of tokens that are among the best, else 0, see `weight_of`."""
    return tl.where(best, weight_of(rank, top, curve, CAPPED), 0.0)


@triton.jit
def take(rank, at, least, last, chosen_at, taken):
    """Append the positions of tokens that reach (least, last) to the `taken` ones in chosen_at; returns which
    tokens these are.
    """
    best = reaches(rank, at, least, last)
    tl.store(chosen_at + taken + tl.cumsum(best.to(tl.int32), axis=0) - 1, at, mask=best)
    return best


@triton.jit
def select_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr, best_ptr, turns_ptr, masses_ptr, shares_ptr,
    sums_ptr, groups_ptr, extra_rank_ptr, extra_at_ptr, list_rank_ptr, list_at_ptr, again_ptr,
    chosen_at_ptr, rest_ptr, attended_ptr, query_ptr, keys_ptr, shift_ptr,
    apart_ptr, codes_b, codes_h, codes_w, scale_b, scale_h, query_b, query_h, query_n, keys_b, keys_h, keys_n,
    scaling, cap, least_share, sinks, recents, budget, room,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, P: tl.constexpr, GROUPS: tl.constexpr,
    LIST: tl.constexpr, BLOCK: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr,
    FAST: tl.constexpr, CHAINED: tl.constexpr, BOUND: tl.constexpr, FORCED: tl.constexpr, D: tl.constexpr,
    LOG_P: tl.constexpr, CAPPED: tl.constexpr, APART: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Choose tokens to attend to; program (query head of a batch, new token).

    Writes their positions to chosen_at [B, H, N, budget], in a reproducible order, and to rest [B, H, N, 2]
    the estimated softmax mass of the tokens that are not chosen and the score that it is relative to. room:
    for extras of a query.
    BOUND: choose no more tokens than the error requires, and write to attended [B, H, N] their number,
    including sinks and recents, of which there are at most FORCED.
    CHAINED: started before the previous launch ended, and lets the next one start at once.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    wide_row = row.to(tl.int64)
    seen = tl.load(length_ptr + batch) + new + 1
    first_sinks, first_recent, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    extra_rank, extra_at = extra_rank_ptr + wide_row * room, extra_at_ptr + wide_row * room
    chosen_at = chosen_at_ptr + wide_row * budget
    codes, scale, codes_w = codes_of_head(
        codes_ptr, scale_ptr, apart_ptr, batch, kv_head, codes_b, codes_h, codes_w, scale_b, scale_h, P, APART
    )
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    units, least = 0.0, 0
    if BOUND:
        units = tl.load(facts_ptr + row * FACTS) * UNITS_PER_NAT
        least = least_exponent(
            facts_ptr + row * FACTS, best_ptr + wide_row * (PLACES * GROUPS),
            shares_ptr + wide_row * (SHARES * GROUPS),
            query_ptr + batch * query_b + head * query_h + new * query_n,
            start_of_rows(keys_ptr, apart_ptr, batch, keys_b, KEYS, APART) + kv_head * keys_h, keys_n,
            scaling, tl.load(shift_ptr + row) * scaling if PACKED else 0.0, least_share,
            forced, first_sinks, first_recent, GROUPS, FORCED, D, P, LOG_P,
        )  # fmt: skip
    rank, at, extras, held, low, beyond, reached, masses, top, curve = shortlist(
        codes, codes_w, scale, words_ptr, facts_ptr + row * FACTS,
        best_ptr + wide_row * (PLACES * GROUPS), turns_ptr + wide_row * GROUPS,
        masses_ptr + wide_row * GROUPS, sums_ptr + wide_row * GROUPS, groups_ptr + wide_row * GROUPS,
        extra_rank, extra_at, list_rank_ptr + wide_row * LIST, list_at_ptr + wide_row * LIST,
        again_ptr, row, sinks, seen - recents, 0, want, cap,
        GROUPS, LIST, P, BLOCK, MANHATTAN, MASS, FAST, CAPPED,
    )  # fmt: skip
    if BOUND:
        want = bounded_want(least, units, forced, rank, extra_rank, held, extras, want)
        tl.store(attended_ptr + row, forced + want)
    low, last = exact_border(
        rank, at, extra_rank, extra_at, held, extras, low, beyond, reached, seen - recents, want
    )
    best = take(rank, at, low, last, chosen_at, 0)
    mass = tl.sum(masses - mass_of(rank, best, top, curve, CAPPED), axis=0)
    if extras > held:
        taken = tl.sum(best.to(tl.int32), axis=0)
        for start in range(held, extras, EXTRAS):
            slot = start + tl.arange(0, EXTRAS)
            more = load_extras(extra_rank, slot, extras, LOWEST)
            more_at = load_extras(extra_at, slot, extras, 0)
            more_best = take(more, more_at, low, last, chosen_at, taken)
            mass -= tl.sum(mass_of(more, more_best, top, curve, CAPPED), axis=0)
            taken += tl.sum(more_best.to(tl.int32), axis=0)
    tl.store(rest_ptr + 2 * row, tl.maximum(mass, 0.0))
    tl.store(rest_ptr + 2 * row + 1, base_of(facts_ptr + row * FACTS, top, cap, CAPPED))
