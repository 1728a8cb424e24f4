"""One pass over the codes: ranks every token, keeps the best ranks of each group of tokens, and sums softmax
mass.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.apart import codes_of_head
from adamas_kernels.triton.coding import FACTS
from adamas_kernels.triton.ranking import dot4, load_queries, load_words, rank_of, rank_tokens
from adamas_kernels.triton.shares import UNITS_PER_NAT
from adamas_kernels.triton.shortlist import curve_of, deal, dealt, empty_groups, store_groups
from adamas_kernels.triton.tile import (
    LANES,
    QUERIES,
    ROWS,
    SHARING,
    TOKENS,
    from_partner,
    load_tile,
    load_tile_queries,
    multiply_tile,
)


@triton.jit
def within(at, low, end):
    """low <= at < end, in one comparison."""
    return (at - low).to(tl.uint32) < tl.maximum(end - low, 0).to(tl.uint32)


# With known alignment, loads would get a different layout, and each word of codes would pass through shared
# memory to reach the layout of the arithmetic (on an H100, 128K tokens: 131 us instead of 58).
@triton.jit(do_not_specialize=["codes_b", "codes_h", "codes_w", "scale_b", "scale_h", "capacity"])
def estimate_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr, best_ptr, turns_ptr, masses_ptr, shares_ptr,
    apart_ptr, codes_b, codes_h, codes_w, scale_b, scale_h, capacity, sinks, recents, cap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr,
    BOUND: tl.constexpr, FAST: tl.constexpr, CHAINED: tl.constexpr, EARLY: tl.constexpr, HELD: tl.constexpr,
    CAPPED: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Program (BLOCK of the groups, KV head of a batch, new token): one token per lane, with byte products.

    A program goes through its groups' tokens with all queries of a KV head, so that one read of the codes
    serves all of them. It writes the groups of each query to best [B, H, N, PLACES, GROUPS], turns and masses
    [B, H, N, GROUPS], and with a BOUND on the error to shares [B, H, N, SHARES, GROUPS]. Tokens that are
    always chosen (sinks, recents) and tokens beyond the query's own are excluded.
    CHAINED: started before the previous launch ended. EARLY: the codes it reads are older than that launch.
    HELD: the queries stay in registers.
    """
    pair, new = tl.program_id(1), tl.program_id(2)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    query = tl.arange(0, ROWS)
    real = query < GROUP
    rows = (pair * GROUP + tl.where(real, query, 0)) * NEW + new
    codes, scale, codes_w = codes_of_head(
        codes_ptr, scale_ptr, apart_ptr, batch, head, codes_b, codes_h, codes_w, scale_b, scale_h, P, APART
    )
    if APART:
        capacity = codes_w
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(length_ptr + batch) + new + 1 - recents
    if CHAINED:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    at = tl.minimum(group, capacity - 1)
    words = load_words(codes, codes_w, at, P)
    scales = tl.load(scale + at)
    if EARLY:
        gdc_wait()
    queries = load_queries(words_ptr, rows, P // 16 if MANHATTAN else P // 4, HELD)
    curve = curve_of(facts_ptr + rows[:, None] * FACTS, cap, CAPPED)
    units = tl.load(facts_ptr + rows * FACTS)[:, None] * UNITS_PER_NAT
    total = tl.load(facts_ptr + rows * FACTS + 2)
    groups = empty_groups(tl.zeros((ROWS, BLOCK), tl.int32))
    for turn in range(0, tl.cdiv(end, GROUPS)):
        at = dealt(turn, group, GROUPS)
        later = tl.minimum(dealt(turn + 1, group, GROUPS), capacity - 1)
        next_words = load_words(codes, codes_w, later, P)
        next_scales = tl.load(scale + later)
        rank = rank_tokens(
            words, scales.to(tl.float32), queries, words_ptr, rows, total,
            ROWS, BLOCK, P, MANHATTAN, FAST, HELD,
        )  # fmt: skip
        groups = deal(groups, rank, within(at, sinks, end)[None, :], turn, curve, units, MASS, BOUND, CAPPED)
        words, scales = next_words, next_scales
    store_groups(
        groups, best_ptr, turns_ptr, masses_ptr, shares_ptr, rows[:, None], group[None, :], real[:, None],
        GROUPS, MASS, BOUND,
    )  # fmt: skip


@triton.jit
def plain_products(codes, codes_w, at, query_words, P: tl.constexpr):
    """Products of each lane's token with its query, one sum of `multiply_tile`, in plain arithmetic."""
    quad = tl.arange(0, P // 4)[None, :]
    word = tl.load(codes + (quad // 4) * codes_w + at[:, None])
    quads, query = tl.broadcast((word >> (2 * (quad % 4))) & 0x03030303, tl.load(query_words[:, None] + quad))
    return tl.sum(dot4(quads, query, tl.zeros((LANES, P // 4), tl.int32), False), axis=1)


@triton.jit
def tile_of_turn(codes, codes_w, start, turn, last, lane, P: tl.constexpr, GROUPS: tl.constexpr):
    """The words of the tokens that the sixteen groups from `start` on get in a turn; tokens after `last` get
    the words of `last`.
    """
    group = start + lane // SHARING
    first_at = tl.minimum(dealt(turn, group, GROUPS), last)
    second_at = tl.minimum(dealt(turn, group + QUERIES, GROUPS), last)
    return load_tile(codes, codes_w, first_at, second_at, lane, P)


@triton.jit
def products(
    words, quads, ahead: tl.constexpr, codes, codes_w, first, second, even_words, odd_words, second_tile,
    P: tl.constexpr, TILES: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Products of each lane's tokens in one turn with its queries, as in `multiply_tile`. Lanes of the second
    tile get the sums of their partners' lanes.
    """
    if FAST:
        sums = multiply_tile(words[TILES * ahead], quads, P)
        if TILES == 2:
            others = multiply_tile(words[TILES * ahead + 1], quads, P)
            sums = (
                tl.where(second_tile, from_partner(others[0]), sums[0]),
                tl.where(second_tile, from_partner(others[1]), sums[1]),
                tl.where(second_tile, from_partner(others[2]), sums[2]),
                tl.where(second_tile, from_partner(others[3]), sums[3]),
            )
    else:
        sums = (
            plain_products(codes, codes_w, first, even_words, P),
            plain_products(codes, codes_w, first, odd_words, P),
            plain_products(codes, codes_w, second, even_words, P),
            plain_products(codes, codes_w, second, odd_words, P),
        )
    return sums


@triton.jit(do_not_specialize=["codes_b", "codes_h", "codes_w", "scale_b", "scale_h", "capacity"])
def estimate_tiles_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr, best_ptr, turns_ptr, masses_ptr, shares_ptr,
    apart_ptr, codes_b, codes_h, codes_w, scale_b, scale_h, capacity, sinks, recents, cap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, P: tl.constexpr,
    GROUPS: tl.constexpr, TILES: tl.constexpr, TURNS: tl.constexpr, MASS: tl.constexpr, BOUND: tl.constexpr,
    FAST: tl.constexpr, CHAINED: tl.constexpr, EARLY: tl.constexpr, CAPPED: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """`estimate_kernel` on tensor cores; program (TILES times 16 groups, eight queries of a KV head of a
    batch, new token), with one warp.

    TILES: 1, or 2 for at most four queries: the lanes without queries then serve the second tile. TURNS:
    turns whose codes are loaded at once.
    """
    pair, new = tl.program_id(1), tl.program_id(2)
    part = pair % tl.cdiv(GROUP, QUERIES)
    pair = pair // tl.cdiv(GROUP, QUERIES)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    lane = tl.arange(0, LANES)
    own = lane % SHARING
    second_tile = own >= SHARING // TILES
    first_row = pair * GROUP * NEW + new
    even = part * QUERIES + 2 * (own % (SHARING // TILES))
    odd = even + 1
    even_row = first_row + tl.where(even < GROUP, even, 0) * NEW
    odd_row = first_row + tl.where(odd < GROUP, odd, 0) * NEW
    even_words, odd_words = words_ptr + even_row * (P // 4), words_ptr + odd_row * (P // 4)
    codes, scale, codes_w = codes_of_head(
        codes_ptr, scale_ptr, apart_ptr, batch, head, codes_b, codes_h, codes_w, scale_b, scale_h, P, APART
    )
    if APART:
        capacity = codes_w
    start = tl.program_id(0) * (TILES * TOKENS)
    group = start + TOKENS * (own // (SHARING // TILES)) + lane // SHARING  # of the first token; +8: second
    end = tl.load(length_ptr + batch) + new + 1 - recents
    if CHAINED:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    last = capacity - 1
    words, scales, quads = (), (), ()
    if FAST:
        for ahead in tl.static_range(TURNS):
            for tile in tl.static_range(TILES):
                words += (  # type: ignore[assignment]
                    tile_of_turn(codes, codes_w, start + TOKENS * tile, ahead, last, lane, P, GROUPS),
                )
    for ahead in tl.static_range(TURNS):
        for row in tl.static_range(ROWS):
            at = tl.minimum(dealt(ahead, group + QUERIES * row, GROUPS), last)
            scales += (tl.load(scale + at),)  # type: ignore[assignment]
    if EARLY:
        gdc_wait()
    if FAST:
        theirs = part * QUERIES + lane // SHARING
        their_row = first_row + tl.where(theirs < GROUP, theirs, 0) * NEW
        quads = load_tile_queries(words_ptr + their_row * (P // 4), lane, P)
    even_score, odd_score = tl.load(facts_ptr + even_row * FACTS), tl.load(facts_ptr + odd_row * FACTS)
    even_curve = curve_of(facts_ptr + even_row * FACTS, cap, CAPPED)
    odd_curve = curve_of(facts_ptr + odd_row * FACTS, cap, CAPPED)
    even_units, odd_units = even_score * UNITS_PER_NAT, odd_score * UNITS_PER_NAT
    even_total = tl.load(facts_ptr + even_row * FACTS + 2)
    odd_total = tl.load(facts_ptr + odd_row * FACTS + 2)
    evens, odds = empty_groups(lane), empty_groups(lane)
    later_evens, later_odds = empty_groups(lane), empty_groups(lane)
    for first_turn in range(0, tl.cdiv(end, GROUPS), TURNS):
        next_words, next_scales = (), ()
        for ahead in tl.static_range(TURNS):
            later = first_turn + TURNS + ahead
            if FAST:
                for tile in tl.static_range(TILES):
                    next_words += (  # type: ignore[assignment]
                        tile_of_turn(codes, codes_w, start + TOKENS * tile, later, last, lane, P, GROUPS),
                    )
            for row in tl.static_range(ROWS):
                at = tl.minimum(dealt(later, group + QUERIES * row, GROUPS), last)
                next_scales += (tl.load(scale + at),)  # type: ignore[assignment]
        for ahead in tl.static_range(TURNS):
            turn = first_turn + ahead
            first_at, second_at = dealt(turn, group, GROUPS), dealt(turn, group + QUERIES, GROUPS)
            sums = products(
                words, quads, ahead, codes, codes_w, tl.minimum(first_at, last), tl.minimum(second_at, last),
                even_words, odd_words, second_tile, P, TILES, FAST,
            )  # fmt: skip
            inside = within(first_at, sinks, end)
            weight = scales[ROWS * ahead].to(tl.float32)  # type: ignore[var-annotated]
            even_rank, odd_rank = rank_of(sums[0], even_total, weight), rank_of(sums[1], odd_total, weight)
            evens = deal(evens, even_rank, inside, turn, even_curve, even_units, MASS, BOUND, CAPPED)
            odds = deal(odds, odd_rank, inside, turn, odd_curve, odd_units, MASS, BOUND, CAPPED)
            inside = within(second_at, sinks, end)
            weight = scales[ROWS * ahead + 1].to(tl.float32)
            even_rank, odd_rank = rank_of(sums[2], even_total, weight), rank_of(sums[3], odd_total, weight)
            later_evens = deal(
                later_evens, even_rank, inside, turn, even_curve, even_units, MASS, BOUND, CAPPED
            )
            later_odds = deal(later_odds, odd_rank, inside, turn, odd_curve, odd_units, MASS, BOUND, CAPPED)
        words, scales = next_words, next_scales
    store_groups(
        evens, best_ptr, turns_ptr, masses_ptr, shares_ptr, even_row, group, even < GROUP, GROUPS, MASS, BOUND
    )
    store_groups(
        odds, best_ptr, turns_ptr, masses_ptr, shares_ptr, odd_row, group, odd < GROUP, GROUPS, MASS, BOUND
    )
    group += QUERIES
    store_groups(
        later_evens,
        best_ptr,
        turns_ptr,
        masses_ptr,
        shares_ptr,
        even_row,
        group,
        even < GROUP,
        GROUPS,
        MASS,
        BOUND,
    )
    store_groups(
        later_odds,
        best_ptr,
        turns_ptr,
        masses_ptr,
        shares_ptr,
        odd_row,
        group,
        odd < GROUP,
        GROUPS,
        MASS,
        BOUND,
    )
