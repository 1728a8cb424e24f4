"""Exact top-k of the groups that the estimate leaves, and the softmax mass of all other tokens. Ties go to
the lowest position.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.coding import FACTS, LOWEST
from adamas_kernels.ranking import load_words, rank_tokens
from adamas_kernels.shortlist import LOG2_E, PLACES, position_of_first, position_of_second

GUESSES = tl.constexpr(4)  # rounds of interpolation, before dividing the interval evenly ends a search
COUNT_BITS = tl.constexpr(16)  # of one of two counts in an int32
EXTRAS = tl.constexpr(256)  # that are read at a time


@triton.jit
def ordered(x):
    """float32 -> int32 with the same order; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(key):
    """The inverse of `ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def forced_and_wanted(seen, sinks, recents, budget):
    """Of `seen` tokens: the sinks, the first of the recents, how many these are together, and how many more
    the budget lets a query choose.
    """
    first_sinks = tl.minimum(sinks, seen)
    first_recent = tl.maximum(first_sinks, seen - recents)
    forced = first_sinks + seen - first_recent
    return first_sinks, first_recent, forced, tl.maximum(tl.minimum(budget, seen) - forced, 0)


@triton.jit
def reaches(rank, at, least, last):
    """Which tokens are at least as good as the one of rank `least` at position `last`."""
    return (rank > least) | ((rank == least) & (at <= last))


@triton.jit
def logarithm(number):
    """About log2 of a positive float32, but for a factor and an addend: its bits as a number."""
    return number.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def pivot(low, high, share, fifth: tl.constexpr, tries):
    """One of four ranks strictly between two: near a share of the way from one to the other, or so many
    fifths of the floats between them.
    """
    if tries < GUESSES:
        near = share + tl.where(tries == 0, 0.15 * fifth - 0.25, 0.05 * fifth - 0.1)
        middle = ordered(low + (high - low) * tl.minimum(tl.maximum(near, 0.02), 0.98))
    else:
        distance = ordered(high).to(tl.int64) - ordered(low).to(tl.int64)
        middle = (ordered(low) + tl.maximum(distance * fifth // 5, 1)).to(tl.int32)
    return unordered(tl.minimum(tl.maximum(middle, ordered(low) + 1), ordered(high) - 1))


@triton.jit
def reach_two(rank, one, other):
    """Which ranks reach each of two, in an int32."""
    return (rank >= one).to(tl.int32) + ((rank >= other).to(tl.int32) << COUNT_BITS)


@triton.jit
def count_reaching(rank, second, extra_rank, extras, one, other, PAIRS: tl.constexpr):
    """How many of the ranks, of the seconds if there are PAIRS, and of the extras reach each of two."""
    reach = reach_two(rank, one, other)
    if PAIRS:
        reach += reach_two(second, one, other)
    number = tl.sum(reach, axis=0)
    for start in range(0, extras, EXTRAS):
        slot = start + tl.arange(0, EXTRAS)
        number += tl.sum(reach_two(load_extras(extra_rank, slot, extras, LOWEST), one, other), axis=0)
    return number


@triton.jit
def load_extras(extras_ptr, slot, extras, other):
    """Extras of these slots. Other threads stored them: past the L1 cache."""
    return tl.load(extras_ptr + slot, mask=slot < extras, other=other, cache_modifier=".cg")


@triton.jit
def find_border(rank, second, extra_rank, extras, low, high, reached, want, limit, PAIRS: tl.constexpr):
    """A rank that at least `want` of all reach, and at most `limit` unless more of the same rank do; how many
    reach it, and how many are above it if these are more than `limit`.

    `reached` reach `low`, and none `high`. Four ranks are tried in each round, because agreeing on a number
    takes longer than counting: about where the border must be if the logarithm of how many reach a rank is
    straight over the ranks.
    """
    above = tl.zeros((), tl.int32)
    tries = 0
    while (reached > limit) & (ordered(high).to(tl.int64) - ordered(low).to(tl.int64) > 1):
        span = logarithm(reached.to(tl.float32))
        share = span - logarithm(0.5 * (want + limit).to(tl.float32))
        share /= span - logarithm(tl.maximum(above.to(tl.float32), 0.5))
        a, b = pivot(low, high, share, 1, tries), pivot(low, high, share, 2, tries)
        c, d = pivot(low, high, share, 3, tries), pivot(low, high, share, 4, tries)
        lower = count_reaching(rank, second, extra_rank, extras, a, b, PAIRS)
        upper = count_reaching(rank, second, extra_rank, extras, c, d, PAIRS)
        for i in tl.static_range(4):
            middle = (a, b, c, d)[i]
            number = ((lower, upper)[i // 2] >> (COUNT_BITS * (i % 2))) & 0xFFFF
            enough = number >= want
            beyond = (number < want) & (middle < high)
            low, reached = tl.where(enough, middle, low), tl.where(enough, number, reached)
            high, above = tl.where(beyond, middle, high), tl.where(beyond, number, above)
        tries += 1
    return low, reached, above


@triton.jit
def last_of_ties(
    rank, at, second, second_at, extra_rank, extra_at, extras, tied, end, want, PAIRS: tl.constexpr
):
    """The lowest position up to which `want` of the tokens of rank `tied` lie."""
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
        for start in range(0, extras, EXTRAS):
            slot = start + tl.arange(0, EXTRAS)
            ties = load_extras(extra_rank, slot, extras, LOWEST) == tied
            number += tl.sum(
                (ties & (load_extras(extra_at, slot, extras, 0) <= between)).to(tl.int32), axis=0
            )
        enough = number >= want
        before, last = tl.where(enough, before, between), tl.where(enough, between, last)
    return last


@triton.jit
def look_again(
    again, count, turns_ptr, groups_ptr, extra_rank, extra_at, codes, codes_w, scale, words_ptr, row,
    total, sinks, end, least, last,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Rank all tokens of the groups `again` [GROUPS], `count` of them, and leave those that reach (least,
    last) and are no group's first or second; returns how many these are.
    """
    tl.store(groups_ptr + tl.cumsum(again.to(tl.int32), axis=0) - 1, tl.arange(0, GROUPS), mask=again)
    tl.debug_barrier()
    rows = row + tl.zeros((1,), tl.int32)
    totals = total + tl.zeros((1,), tl.float32)
    most_turns = tl.cdiv(end, GROUPS)
    extras = tl.zeros((), tl.int32)
    for start in range(0, count * most_turns, BLOCK):
        item = start + tl.arange(0, BLOCK)
        there = item < count * most_turns
        group = tl.load(groups_ptr + item // most_turns, mask=there, other=0, cache_modifier=".cg")
        at = (item % most_turns) * GROUPS + group
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
    first_reaches, second_reaches, best, turns_ptr, sums_ptr, GROUPS: tl.constexpr, LIST: tl.constexpr
):
    """The groups' firsts and seconds that reach a border, one to each of LIST slots: ranks, LOWEST behind the
    last, and positions. A second only where the first does.

    Each slot looks for its group among the sums of how many each group and those before it have.
    """
    sums = tl.cumsum(first_reaches.to(tl.int32) + second_reaches.to(tl.int32), axis=0)
    tl.store(sums_ptr + tl.arange(0, GROUPS), sums)
    tl.debug_barrier()
    slot = tl.arange(0, LIST)
    group = tl.zeros((LIST,), tl.int32)
    for halving in tl.static_range(1, 16):
        if GROUPS >> halving > 0:
            passed = tl.load(sums_ptr + group + ((GROUPS >> halving) - 1)) <= slot
            group += tl.where(passed, GROUPS >> halving, 0)
    there = slot < tl.load(sums_ptr + GROUPS - 1)
    before = tl.load(sums_ptr + group - 1, mask=there & (group > 0), other=0)
    is_second = slot > before
    rank = tl.load(best + tl.where(is_second, GROUPS, 0) + group, mask=there, other=LOWEST)
    turns = tl.load(turns_ptr + group, mask=there, other=0)
    first_at, second_at = position_of_first(turns, group, GROUPS), position_of_second(turns, group, GROUPS)
    return rank, tl.where(is_second, second_at, first_at)


@triton.jit
def take(rank, at, least, last, chosen_at, taken, top, slope, MASS: tl.constexpr):
    """Append the positions of tokens that reach (least, last) to chosen_at, which has `taken`; returns their
    softmax mass relative to rank `top`.
    """
    best = reaches(rank, at, least, last)
    tl.store(chosen_at + taken + tl.cumsum(best.to(tl.int32), axis=0) - 1, at, mask=best)
    mass = tl.zeros((), tl.float32)
    if MASS:
        mass = tl.sum(tl.where(best, tl.exp2((rank - top) * slope), 0.0), axis=0)
    return mass


@triton.jit
def choose(
    codes, codes_w, scale, words_ptr, fact, best, turns_ptr, masses, sums_ptr, extra_rank, extra_at,
    chosen_at, again_ptr, row, sinks, end, want,
    GROUPS: tl.constexpr, LIST: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Leave the positions of the best `want` tokens of a query in chosen_at [want], in an order that repeats.

    A border that somewhat more than `want` of the groups' firsts and seconds reach is found first, and what
    reaches it is listed; of groups whose third does, too, all that reach it are extras. Then the border of
    exactly `want` among these is found.

    Pointers are to the query's own; `row` is its number. again_ptr gets how many groups were looked at again.
    Returns the estimated softmax mass of the tokens that are not chosen, and the score that it is relative
    to.
    """
    group = tl.arange(0, GROUPS)
    # All of these at once, whatever of it will be needed: each waits as long as one of them.
    first = tl.load(best + group)
    second = tl.load(best + GROUPS + group)
    third = tl.load(best + 2 * GROUPS + group)
    turns = tl.load(turns_ptr + group)
    unit, offset, total = tl.load(fact), tl.load(fact + 1), tl.load(fact + 2)
    slope = unit * LOG2_E
    key = ordered(first)
    highest = tl.max(key, axis=0)
    top, beyond = unordered(highest), unordered(highest + 1)
    rest = tl.zeros((), tl.float32)
    if MASS:
        weight = tl.load(masses + group) * tl.exp2((first - top) * slope)
        rest = tl.sum(tl.where(first > LOWEST, weight, 0.0), axis=0)
    none, count = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    if want > 0:
        # All firsts reach the lowest of them, and at most all seconds: enough to begin with. Where all fit
        # the list, there is nothing to search for.
        limit: tl.constexpr = LIST - LIST // 8
        reached = tl.minimum(2 * GROUPS, end - sinks)
        low = unordered(tl.min(tl.where(first > LOWEST, key, highest), axis=0))
        low = tl.where(reached > limit, low, 0.5 * LOWEST)
        low, reached, above = find_border(
            first, second, extra_rank, none, low, beyond, reached, want, limit, True
        )
        last = end
        first_reaches, second_reaches = first >= low, second >= low
        if reached > limit:  # so many tie: those of the lowest positions that are enough
            reached = want
            first_at = position_of_first(turns, group, GROUPS)
            second_at = position_of_second(turns, group, GROUPS)
            last = last_of_ties(
                first, first_at, second, second_at, extra_rank, extra_at, none, low, end, want - above, True
            )
            first_reaches = reaches(first, first_at, low, last)
            second_reaches = reaches(second, second_at, low, last)
        again = second_reaches & (third >= low)  # the third's position is not known: it may tie
        count = tl.sum(again.to(tl.int32), axis=0)
        extras = none
        if count > 0:
            extras = look_again(
                again, count, turns_ptr, sums_ptr, extra_rank, extra_at, codes, codes_w, scale, words_ptr, row,
                total, sinks, end, low, last, GROUPS, BLOCK, P, MANHATTAN, FAST,
            )  # fmt: skip
            tl.debug_barrier()
        rank, at = list_reaching(first_reaches, second_reaches, best, turns_ptr, sums_ptr, GROUPS, LIST)
        low, reached, above = find_border(
            rank, rank, extra_rank, extras, low, beyond, reached + extras, want, want, False
        )
        last = end
        if reached > want:
            last = last_of_ties(
                rank, at, rank, at, extra_rank, extra_at, extras, low, end, want - above, False
            )
        rest -= take(rank, at, low, last, chosen_at, 0, top, slope, MASS)
        if extras > 0:
            taken = tl.sum(reaches(rank, at, low, last).to(tl.int32), axis=0)
            for start in range(0, extras, EXTRAS):
                slot = start + tl.arange(0, EXTRAS)
                more, more_at = (
                    load_extras(extra_rank, slot, extras, LOWEST),
                    load_extras(extra_at, slot, extras, 0),
                )
                rest -= take(more, more_at, low, last, chosen_at, taken, top, slope, MASS)
                taken += tl.sum(reaches(more, more_at, low, last).to(tl.int32), axis=0)
    tl.store(again_ptr + row, count)
    return tl.maximum(rest, 0.0), offset + unit * top


@triton.jit
def select_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr, best_ptr, turns_ptr, masses_ptr,
    sums_ptr, extra_rank_ptr, extra_at_ptr, chosen_at_ptr, again_ptr, rest_ptr,
    codes_b, codes_h, codes_w, scale_b, scale_h, sinks, recents, budget, room,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, P: tl.constexpr, GROUPS: tl.constexpr,
    LIST: tl.constexpr, BLOCK: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr,
    FAST: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Choose tokens to attend to; program (query head of a batch, new token).

    Leaves what `choose` returns in rest [B, H, N, 2]. room: for extras of a query.
    CHAINED: started before the launch before it ended, and lets the next one start at once.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    wide_row = row.to(tl.int64)
    seen = tl.load(length_ptr) + new + 1
    _, _, _, want = forced_and_wanted(seen, sinks, recents, budget)
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    mass, top = choose(
        codes_ptr + batch * codes_b + kv_head * codes_h, codes_w,
        scale_ptr + batch * scale_b + kv_head * scale_h, words_ptr, facts_ptr + row * FACTS,
        best_ptr + wide_row * (PLACES * GROUPS), turns_ptr + wide_row * GROUPS,
        masses_ptr + wide_row * GROUPS, sums_ptr + wide_row * GROUPS,
        extra_rank_ptr + wide_row * room, extra_at_ptr + wide_row * room,
        chosen_at_ptr + wide_row * budget, again_ptr, row, sinks, seen - recents, want,
        GROUPS, LIST, P, BLOCK, MANHATTAN, MASS, FAST,
    )  # fmt: skip
    tl.store(rest_ptr + 2 * row, mass)
    tl.store(rest_ptr + 2 * row + 1, top)
