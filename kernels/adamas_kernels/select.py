"""Exact top-k: the best of the candidates or, where those do not do, of all tokens; and what these tell. Ties
go to the lowest position.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.coding import COUNTER_STRIDE, FACTS, INVALID, LOWEST
from adamas_kernels.estimate import count_bits, load_words, mass_anchor, mass_line, mass_of, rank_tokens

NOTHING = tl.constexpr(-(2**63))  # behind every token
ANYTHING = tl.constexpr(2**63 - 1)


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
def candidate_keys(rank, at, there):
    """int64 keys that order candidates by rank and then by position, no two alike. They take 63 bits, so that
    the difference of two fits.
    """
    key = (ordered(rank).to(tl.int64) << 31) | (0x7FFFFFFF - at).to(tl.int64)
    return tl.where(there, key, NOTHING)


@triton.jit
def sort_candidates(rank, at, there, chosen_at, chosen_rank, want, ROOM: tl.constexpr):
    """The common case: the candidates, rank and at [ROOM] where `there`, hold the best `want` tokens.

    Candidates come in the order in which programs found them. Sorting them by rank and position makes both
    the choice and the order of all later sums repeat.
    """
    key = tl.sort(candidate_keys(rank, at, there), descending=True)
    slot = tl.arange(0, ROOM)
    tl.store(chosen_at + slot, 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32), mask=slot < want)
    tl.store(chosen_rank + slot, unordered((key >> 31).to(tl.int32)), mask=slot < want)


@triton.jit
def key_of_last(key, there, count, want):
    """A number that exactly `want` of the keys reach, all different, `count` of which are `there`.

    Unless many ranks tie, the gaps between them are wide, and about a dozen of the 63 bits decide. Counting
    against several numbers at a time would take fewer rounds, but no less time.
    """
    low = tl.min(tl.where(there, key, ANYTHING), axis=0)
    high = tl.max(key, axis=0) + 1
    reached = count
    while reached > want:  # so many reach `low`, and fewer than wanted reach `high`
        middle = low + tl.cdiv(high - low, 2)
        reach = tl.sum((key >= middle).to(tl.int32), axis=0)
        enough = reach >= want
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        reached = tl.where(enough, reach, reached)
    return low


@triton.jit
def clear_marks(marks, words, WORDS: tl.constexpr):
    """Zero int32 [words], for the whole program to see."""
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        tl.store(marks + word, tl.zeros((WORDS,), tl.int32), mask=word < words)
    tl.debug_barrier()


@triton.jit
def bisect_candidates(
    rank, at, there, count, marks, before, words, chosen_at, chosen_rank, want,
    WORDS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """`sort_candidates` for so many that a sort is slow; the chosen come in the order of their positions.

    A bit of marks int32 [words], which are zero before, stands for each position; a word's number of chosen
    tokens before it goes to before int32 [words].
    """
    key = candidate_keys(rank, at, there)
    best = key >= key_of_last(key, there, count, want)
    word, bit = at >> 5, at & 31
    tl.atomic_or(marks + word, 1 << bit, mask=best, sem="relaxed")
    tl.debug_barrier()
    # Atomics change the L2 cache, past the L1 cache that a plain load may be served from.
    taken = tl.zeros((), tl.int32)
    for start in range(0, words, WORDS):
        each = start + tl.arange(0, WORDS)
        ones = count_bits(tl.load(marks + each, mask=each < words, other=0, cache_modifier=".cg"), FAST)
        tl.store(before + each, taken + tl.cumsum(ones, axis=0) - ones, mask=each < words)
        taken += tl.sum(ones, axis=0)
    tl.debug_barrier()
    lower = tl.load(marks + word, mask=best, other=0, cache_modifier=".cg") & ((1 << bit) - 1)
    slot = tl.load(before + word, mask=best, other=0) + count_bits(lower, FAST)
    tl.store(chosen_at + slot, at, mask=best)
    tl.store(chosen_rank + slot, rank, mask=best)


@triton.jit
def count_row(ranks, end, key, at_most, BLOCK: tl.constexpr):
    """How many of a row of ranks [end] lie above `key`, and how many equal it at positions up to
    `at_most`.
    """
    above = tl.zeros((), tl.int32)
    equal = tl.zeros((), tl.int32)
    for block in range(0, tl.cdiv(end, BLOCK)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        found = ordered(tl.load(ranks + at, mask=at < end, other=INVALID))
        valid = (at < end) & (found != ordered(tl.full((BLOCK,), INVALID, tl.float32)))
        above += tl.sum((valid & (found > key)).to(tl.int32), axis=0)
        equal += tl.sum((valid & (found == key) & (at <= at_most)).to(tl.int32), axis=0)
    return above, equal


@triton.jit
def select_all(
    codes, codes_w, scale, words_ptr, total, ranks, chosen_at, chosen_rank, row, sinks, end, want,
    BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The uncommon case: too few or too many candidates. Ranks all tokens again into `ranks` and bisects
    over them; the chosen come in the order of their positions.
    """
    one = row + tl.zeros((1,), tl.int32)
    for block in range(0, tl.cdiv(end, BLOCK)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = (at >= sinks) & (at < end)
        row_at = tl.minimum(at, end - 1)
        words = load_words(codes, codes_w, row_at, P)
        scales = tl.load(scale + row_at).to(tl.float32)
        rank = rank_tokens(
            words, scales, (), words_ptr, one, total + tl.zeros((1,), tl.float32),
            1, BLOCK, P, MANHATTAN, FAST, False,
        )  # fmt: skip
        rank = tl.where(inside, tl.reshape(rank, (BLOCK,)), INVALID)
        tl.store(ranks + at, rank, mask=at < end)
    tl.debug_barrier()
    low = tl.full((), -(2**31) + 1, tl.int64)
    high = tl.full((), 2**31 - 1, tl.int64)
    while low < high:  # the largest key with at least `want` tokens at or above it
        middle = low + (high - low + 1) // 2
        above, equal = count_row(ranks, end, middle.to(tl.int32), end, BLOCK)
        if above + equal >= want:
            low = middle
        else:
            high = middle - 1
    smallest = low.to(tl.int32)
    above, equal = count_row(ranks, end, smallest, end, BLOCK)
    need = want - above
    first = tl.full((), -1, tl.int32)
    last = end
    if equal > need:
        while first < last:  # the lowest position up to which enough of the tied tokens lie
            middle_at = first + (last - first) // 2
            _, equal = count_row(ranks, end, smallest, middle_at, BLOCK)
            if equal >= need:
                last = middle_at
            else:
                first = middle_at + 1
    taken = tl.zeros((), tl.int32)
    for block in range(0, tl.cdiv(end, BLOCK)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        rank = tl.load(ranks + at, mask=at < end, other=INVALID)
        key = ordered(rank)
        best = (at >= sinks) & (at < end) & ((key > smallest) | ((key == smallest) & (at <= last)))
        slot = taken + tl.cumsum(best.to(tl.int32), axis=0) - 1
        chosen = best & (slot < want)
        tl.store(chosen_at + slot, at, mask=chosen)
        tl.store(chosen_rank + slot, rank, mask=chosen)
        taken += tl.sum(chosen.to(tl.int32), axis=0)


@triton.jit
def choose(
    codes, codes_w, scale, words_ptr, fact, ranks, rank_ptr, position_ptr, count_ptr, masses, threshold,
    chosen_at, chosen_rank, marks, before, words, row, new, sinks, recents, seen, forced, want,
    target, programs,
    NEW: tl.constexpr, P: tl.constexpr, ROOM: tl.constexpr, BUDGET_PAD: tl.constexpr,
    PROGRAMS_PAD: tl.constexpr, BLOCK: tl.constexpr, WORDS: tl.constexpr, SORTED: tl.constexpr,
    MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Leave the best `want` tokens of a query in chosen_at and chosen_rank [want], in an order that repeats,
    and predict the next step's threshold.

    SORTED: sort the candidates; otherwise bisect, with marks and before int32 [words].
    Returns the estimated softmax mass of the tokens that are not chosen, and the score that it is relative
    to.
    """
    every = tl.arange(0, ROOM)
    # All of these at once, whatever of it will be needed: each waits as long as one of them.
    count = tl.load(count_ptr + row * COUNTER_STRIDE)
    rank = tl.load(rank_ptr + row.to(tl.int64) * ROOM + every)
    candidate = tl.load(position_ptr + row.to(tl.int64) * ROOM + every)
    unit, offset, total, spread = tl.load(fact), tl.load(fact + 1), tl.load(fact + 2), tl.load(fact + 4)
    top = mass_anchor(unit, offset, tl.load(fact + 3))
    mass = tl.zeros((), tl.float32)
    if MASS:
        part = tl.arange(0, PROGRAMS_PAD)
        mass = tl.sum(tl.load(masses + part, mask=part < programs, other=0.0), axis=0)
    if (count >= want) & (count <= ROOM):
        if SORTED:
            sort_candidates(rank, candidate, every < count, chosen_at, chosen_rank, want, ROOM)
        else:
            bisect_candidates(
                rank, candidate, every < count, count, marks, before, words, chosen_at, chosen_rank, want,
                WORDS, FAST,
            )  # fmt: skip
    else:
        select_all(
            codes, codes_w, scale, words_ptr, total, ranks, chosen_at, chosen_rank,
            row, sinks, seen - recents, want, BLOCK, P, MANHATTAN, FAST,
        )  # fmt: skip
    tl.debug_barrier()
    number = tl.arange(0, BUDGET_PAD)
    best = tl.load(chosen_rank + number, mask=number < want, other=0.0)
    edge = tl.min(tl.where(number < want, best, float("inf")), axis=0)
    if MASS:
        slope, level = mass_line(unit, offset, top)
        mass -= tl.sum(tl.where(number < want, mass_of(best, slope, level), 0.0), axis=0)
    if new == NEW - 1:
        # The best tokens' excess over the last of them tells the slope of the tail, and so the rank at which
        # `target` candidates would pass. While all tokens fit the room, all pass.
        excess = tl.sum(tl.where(number < want, best - edge, 0.0), axis=0) / tl.maximum(want, 1)
        guess = edge + excess * tl.log(tl.maximum(want, 1).to(tl.float32) / target)
        open_wide = (seen - forced <= ROOM) | (want == 0)
        tl.store(threshold, tl.where(open_wide, LOWEST, guess / tl.where(spread > 0, spread, 1.0)))
    return mass, top


# With known alignment each thread would load four candidates side by side, and every scattered store would
# pass through shared memory on its way to another layout.
@triton.jit(do_not_specialize_on_alignment=["rank_ptr", "position_ptr"])
def select_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr, rank_ptr, position_ptr, count_ptr, mass_ptr,
    threshold_ptr, ranks_ptr, chosen_at_ptr, chosen_rank_ptr, marks_ptr, rest_ptr,
    codes_b, codes_h, codes_w, scale_b, scale_h,
    capacity, sinks, recents, budget, target, programs,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, P: tl.constexpr,
    ROOM: tl.constexpr, BUDGET_PAD: tl.constexpr, PROGRAMS_PAD: tl.constexpr, BLOCK: tl.constexpr,
    WORDS: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Choose tokens for several programs to attend to; program (query head of a batch, new token).

    Leaves what `choose` returns in rest [B, H, N, 2].
    CHAINED: started before the launch before it ended, and lets the next one start at once.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = head // GROUP
    row = pair * NEW + new
    wide_row = row.to(tl.int64)
    first = wide_row * ROOM
    seen = tl.load(length_ptr) + new + 1
    _, _, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    most_words, words = tl.cdiv(capacity, 32), tl.cdiv(seen, 32)
    marks = marks_ptr + wide_row * 2 * most_words
    if CHAINED:
        gdc_launch_dependents()
    clear_marks(marks, words, WORDS)
    if CHAINED:
        gdc_wait()
    mass, top = choose(
        codes_ptr + batch * codes_b + kv_head * codes_h, codes_w,
        scale_ptr + batch * scale_b + kv_head * scale_h,
        words_ptr, facts_ptr + row * FACTS, ranks_ptr + wide_row * capacity,
        rank_ptr, position_ptr, count_ptr, mass_ptr + wide_row * programs, threshold_ptr + pair,
        chosen_at_ptr + first, chosen_rank_ptr + first, marks, marks + most_words, words,
        row, new, sinks, recents, seen, forced, want, target, programs,
        NEW, P, ROOM, BUDGET_PAD, PROGRAMS_PAD, BLOCK, WORDS, False, MANHATTAN, MASS, FAST,
    )  # fmt: skip
    tl.store(rest_ptr + 2 * row, mass)
    tl.store(rest_ptr + 2 * row + 1, top)
