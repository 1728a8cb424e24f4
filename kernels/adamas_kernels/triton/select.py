"""Exact top-k from the groups of the estimate, and the softmax mass of all other tokens. Ties go to the
lowest position.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.apart import KEYS, codes_of_head, start_of_rows
from adamas_kernels.triton.border import (
    COUNT_BITS,
    COUNT_MASK,
    EXTRAS,
    WARP,
    find_border,
    larger_of_both,
    last_of_ties,
    load_extras,
    ordered,
    unordered,
)
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

WARP_LIST = tl.constexpr(512)  # longest list that every warp searches as a whole
# A list that may be much longer than needed, and then make groups be ranked again for nothing.
LARGE_LIST = tl.constexpr(4096)
HELD_GROUPS = tl.constexpr(8192)  # of which a program's registers hold all that the estimate kept


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
def look_again(
    again, place, whole, count, turns, few_turns, turns_ptr, groups_ptr, extra_rank, extra_at,
    codes, codes_w, scale, words_ptr, row, total, sinks, end, least, last,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Rank the tokens of the `count` groups in `again` [GROUPS], whose indices among these are `place`, those
    of the first `whole` in all `turns` and of the others in the first `few_turns`. Write those that reach
    (least, last) and are no group's first or second; returns their number.
    """
    tl.store(groups_ptr + place, tl.arange(0, GROUPS), mask=again)
    tl.debug_barrier()
    rows = row + tl.zeros((1,), tl.int32)
    totals = total + tl.zeros((1,), tl.float32)
    extras = tl.zeros((), tl.int32)
    items_of_whole = whole * turns
    items = items_of_whole + (count - whole) * few_turns
    for start in range(0, items, BLOCK):
        item = start + tl.arange(0, BLOCK)
        there = item < items
        is_whole = item < items_of_whole
        item = tl.where(is_whole, item, item - items_of_whole)
        of_each = tl.where(is_whole, turns, few_turns)
        which = item // of_each
        turn = item - which * of_each
        which += tl.where(is_whole, 0, whole)
        group = tl.load(groups_ptr + which, mask=there, other=0, cache_modifier=".cg")
        at = dealt(turn, group, GROUPS)
        there &= (at >= sinks) & (at < end)
        at = tl.where(there, at, 0)
        kept = tl.load(turns_ptr + group, mask=there, other=0)
        words = load_words(codes, codes_w, at, P)
        weight = tl.load(scale + at).to(tl.float32)
        rank = rank_tokens(words, weight, (), words_ptr, rows, totals, 1, BLOCK, P, MANHATTAN, FAST, False)
        rank = tl.reshape(rank, (BLOCK,))
        there &= at != position_of_first(kept, group, GROUPS)
        there &= at != position_of_second(kept, group, GROUPS)
        there &= reaches(rank, at, least, last)
        slot = extras + tl.cumsum(there.to(tl.int32), axis=0) - 1
        tl.store(extra_rank + slot, rank, mask=there)
        tl.store(extra_at + slot, at, mask=there)
        extras += tl.sum(there.to(tl.int32), axis=0)
    return extras


@triton.jit
def with_extras(rank, at, slot, extras, extra_rank, extra_at):
    """Ranks and positions of a list, with those of extras where `slot` is the number of one."""
    extra = slot.to(tl.uint32, bitcast=True)  # very large before the first
    more = extra < extras.to(tl.uint32)
    rank = tl.where(more, tl.load(extra_rank + extra, mask=more, other=0.0, cache_modifier=".cg"), rank)
    at = tl.where(more, tl.load(extra_at + extra, mask=more, other=0, cache_modifier=".cg"), at)
    return rank, at


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
        rank, at = with_extras(rank, at, slot - listed, extras, extra_rank, extra_at)
    # Through memory: otherwise the compiler repeats all of this in every lane that later holds part of a key.
    slot = tl.arange(0, LIST)
    tl.store(list_rank + slot, rank)
    tl.store(list_at + slot, at)
    tl.debug_barrier()
    return tl.load(list_rank + slot), tl.load(list_at + slot)


@triton.jit
def list_each(
    sums_ptr, listed, forced, extras, best, turns_ptr, extra_rank, extra_at, list_rank, list_at,
    GROUPS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """The same, for long lists: each group stores its own tokens, which then takes less time."""
    group, slot = tl.arange(0, GROUPS), tl.arange(0, LIST)
    before = tl.load(sums_ptr + group - 1, mask=group > 0, other=0) & COUNT_MASK
    count = (tl.load(sums_ptr + group) & COUNT_MASK) - before
    turns = tl.load(turns_ptr + group, mask=count > 0, other=0)
    first = tl.load(best + group, mask=count > 0, other=0.0)
    second = tl.load(best + GROUPS + group, mask=count > 1, other=0.0)
    to = forced + before
    tl.store(list_rank + to, first, mask=count > 0)
    tl.store(list_at + to, position_of_first(turns, group, GROUPS), mask=count > 0)
    tl.store(list_rank + to + 1, second, mask=count > 1)
    tl.store(list_at + to + 1, position_of_second(turns, group, GROUPS), mask=count > 1)
    tl.debug_barrier()
    there = (slot >= forced) & (slot < forced + listed)
    rank = tl.load(list_rank + slot, mask=there, other=LOWEST)
    at = tl.load(list_at + slot, mask=there, other=0)
    if extras > 0:
        rank, at = with_extras(rank, at, slot - forced - listed, extras, extra_rank, extra_at)
    return rank, at


@triton.jit
def sample_of_firsts(best, GROUPS: tl.constexpr, BLOCKS: tl.constexpr):
    """Of WARP samples of BLOCKS groups each the largest first, see `ordered`; int32 in every warp."""
    lane = tl.arange(0, WARP)
    largest = tl.load(best + lane)
    for block in tl.static_range(1, BLOCKS):
        largest = tl.maximum(largest, tl.load(best + block * (GROUPS // BLOCKS) + lane))
    return ordered(largest)


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
    groups whose third reaches it, too, all further tokens that reach it are extras. If the border is within
    ties, a group whose third ties has no others, and those that count lie in the first turns.

    Pointers are to the query's own data; `row` is its number. again_ptr gets the number of re-ranked groups.
    """
    group = tl.arange(0, GROUPS)
    # Load all at once, needed or not: together they take as long as one.
    first = tl.load(best + group)
    second = tl.load(best + GROUPS + group)
    if GROUPS <= HELD_GROUPS:
        third = tl.load(best + 2 * GROUPS + group)
        turns = tl.load(turns_ptr + group)
    mass = first
    if MASS:
        mass = tl.load(masses + group)
    sample = sample_of_firsts(best, GROUPS, GROUPS // LIST)
    curve = curve_of(fact, cap, CAPPED)
    total = tl.load(fact + 2)
    # All firsts reach the lowest of them, and at most all seconds do: enough to begin with. If all fit the
    # list, there is nothing to search for.
    limit = LIST - LIST // 8 - forced
    if LIST >= LARGE_LIST:
        limit = tl.minimum(limit, want + want // 4)
    reached = tl.minimum(2 * GROUPS, tl.maximum(end - sinks, 0))
    least = tl.where((reached <= limit) & (second > LOWEST), second, first)
    key = ordered(first)
    not_lowest = tl.where(first > LOWEST, ~ordered(least), ~0x7FFFFFFF)
    highest, not_lowest = tl.reduce((key, not_lowest), 0, larger_of_both)
    top, beyond = unordered(highest), unordered(highest + 1)
    masses_left = tl.zeros((LIST,), tl.float32)
    if MASS:
        weight = mass
        if not CAPPED:
            weight *= weight_of(first, top, curve, CAPPED)
        weight = tl.where(first > LOWEST, weight, 0.0)
        masses_left = tl.sum(tl.reshape(weight, (GROUPS // LIST, LIST), can_reorder=True), axis=0)
    none, extras, count = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    low = tl.where(reached > 0, unordered(~not_lowest), 0.5 * LOWEST)
    share = tl.exp(-0.5 * (want + limit).to(tl.float32) / LIST)
    low, reached, above = find_border(
        (first, second), extra_rank, none, none, low, beyond, reached, want, limit, sample, share, True
    )
    if GROUPS > HELD_GROUPS:
        third = tl.load(best + 2 * GROUPS + group)
        turns = tl.load(turns_ptr + group)
    last = end
    cut = reached > limit  # too many ties: take about enough, at the lowest positions
    first_reaches, second_reaches = first >= low, second >= low
    if cut:
        first_at = position_of_first(turns, group, GROUPS)
        second_at = position_of_second(turns, group, GROUPS)
        last = last_of_ties(
            (first, second), (first_at, second_at), extra_rank, extra_at, none, none, low,
            reached - above, want - above, limit - above,
        )  # fmt: skip
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
        all_turns = tl.cdiv(end, GROUPS)
        place, whole, few_turns = (sums >> COUNT_BITS) - 1, count, all_turns
        if cut:
            tied = again & (third == low)
            kinds = (again & ~tied).to(tl.int32) + (tied.to(tl.int32) << COUNT_BITS)
            whole = tl.sum(kinds, axis=0) & COUNT_MASK
            kinds = tl.cumsum(kinds, axis=0)
            place = tl.where(tied, whole + (kinds >> COUNT_BITS), kinds & COUNT_MASK) - 1
            few_turns = last // GROUPS + 1
        extras = look_again(
            again, place, whole, count, all_turns, few_turns, turns_ptr, groups_ptr, extra_rank, extra_at,
            codes, codes_w, scale, words_ptr, row, total, sinks, end, low, last,
            GROUPS, BLOCK, P, MANHATTAN, FAST,
        )  # fmt: skip
        tl.debug_barrier()
    tl.store(again_ptr + row, count)
    if LIST > WARP_LIST:
        rank, at = list_each(
            sums_ptr, listed, forced, extras, best, turns_ptr, extra_rank, extra_at, list_rank, list_at,
            GROUPS, LIST,
        )  # fmt: skip
    else:
        rank, at = list_reaching(
            sums_ptr, listed, forced, extras, best, turns_ptr, extra_rank, extra_at, list_rank, list_at,
            GROUPS, LIST,
        )  # fmt: skip
    held = tl.minimum(extras, LIST - forced - listed)
    return rank, at, extras, held, low, beyond, listed + extras, masses_left, top, curve


@triton.jit
def in_every_warp(numbers, LIST: tl.constexpr):
    """LIST numbers in memory as a tuple of tensors that every warp holds as a whole."""
    parts = ()
    for part in tl.static_range(LIST // WARP):
        parts += (tl.load(numbers + part * WARP + tl.arange(0, WARP)),)  # type: ignore[assignment]
    return parts


@triton.jit
def exact_border(
    rank, at, list_rank, list_at, extra_rank, extra_at, held, extras, low, beyond, reached, end, want,
    LIST: tl.constexpr,
):  # fmt: skip
    """Rank and position of the last of the `want` best among listed tokens, which are in memory as well, and
    extras from `held` on.
    """
    ranks, ats = (rank,), (at,)
    if LIST <= WARP_LIST:
        ranks, ats = in_every_warp(list_rank, LIST), in_every_warp(list_at, LIST)
    low, reached, above = find_border(
        ranks, extra_rank, held, extras, low, beyond, reached, want, want, low, low, False
    )
    last = end
    if reached > want:
        number = want - above
        last = last_of_ties(
            ranks, ats, extra_rank, extra_at, held, extras, low, reached - above, number, number
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
        rank, at, list_rank_ptr + wide_row * LIST, list_at_ptr + wide_row * LIST, extra_rank, extra_at,
        held, extras, low, beyond, reached, seen - recents, want, LIST,
    )  # fmt: skip
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
