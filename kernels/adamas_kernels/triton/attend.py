"""Exact attention over the chosen tokens, and what the others would have added."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.apart import (
    KEYS,
    TALLY,
    TALLY_ROOM,
    VALUE_SUM,
    VALUES,
    codes_of_head,
    fact_of,
    start_of,
    start_of_rows,
)
from adamas_kernels.triton.border import load_extras, sum_of_both
from adamas_kernels.triton.coding import FACTS, LOWEST, soft_capped
from adamas_kernels.triton.fetch import chosen_positions
from adamas_kernels.triton.packed_rows import load_numbers, turn
from adamas_kernels.triton.select import (
    bounded_want,
    exact_border,
    forced_and_wanted,
    mass_of,
    reaches,
    shortlist,
)
from adamas_kernels.triton.shares import SHARES, UNITS_PER_NAT, least_exponent
from adamas_kernels.triton.shortlist import PLACES, base_of

# Numbers before the vectors of a split: maximum, sum, and two for alignment of the vectors.
PART_FACTS = tl.constexpr(4)
EXTRAS_HELD = tl.constexpr(32)  # extras whose keys and values are held at a time


@triton.jit
def by_warps(x, NEAR: tl.constexpr):
    """One number per token, [TOKENS] -> [NEAR, 1, TOKENS / NEAR, 1], in the layout of `load_values`."""
    return tl.reshape(x, (NEAR, 1, x.shape[0] // NEAR, 1))


@triton.jit
def load_keys(at, real, keys, keys_n, dim, D: tl.constexpr):
    """Keys [TOKENS, P] of tokens, zeros for missing ones; see `load_numbers`."""
    inside = real[:, None] & (dim < D)[None, :]
    return load_numbers(keys + at.to(tl.int64)[:, None] * keys_n, dim[None, :], inside, D)


@triton.jit
def load_values(
    at, real, values, values_n,
    D_V: tl.constexpr, D_V_PAD: tl.constexpr, WARPS: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """Values [NEAR, WARPS, TOKENS / NEAR, D_V_PAD / WARPS] of tokens, zeros for missing ones. NEAR: tokens
    that one load of a warp covers.

    In this shape each warp holds some columns of all tokens, so sums over tokens need no other warp: in a
    plain shape their parts would meet in one bank of shared memory.
    """
    width: tl.constexpr = D_V_PAD // WARPS
    column = tl.arange(0, WARPS)[:, None, None] * width + tl.arange(0, width)[None, None, :]
    at, real = by_warps(at.to(tl.int64), NEAR), by_warps(real, NEAR)
    return load_numbers(values + at * values_n, column[None], real & (column < D_V)[None], D_V)


@triton.jit
def sum_values(factor, v, NEAR: tl.constexpr):
    """Sum float32 [WARPS, D_V_PAD / WARPS] of values times a factor per token."""
    return tl.sum(tl.sum(by_warps(factor, NEAR) * v.to(tl.float32), axis=2), axis=0)


@triton.jit
def score_of(k, q, shift, real, cap, CAPPED: tl.constexpr):
    """Exact scores float32 [TOKENS] of keys [TOKENS, P], LOWEST for missing tokens. shift: the query's score
    with the centre of packed keys, which those lack.
    """
    score = tl.sum(k.to(tl.float32) * q[None, :], axis=1) + shift
    return tl.where(real, soft_capped(score, cap, CAPPED), LOWEST)


@triton.jit
def turned_back(x, P: tl.constexpr, LOG_TURNED: tl.constexpr, PACKED: tl.constexpr):
    """An output float32 [P] as the model takes it, from one of PACKED values; see `packed_rows.py`."""
    if PACKED:
        x = tl.reshape(turn(tl.reshape(x, (1, P)), 1, P, LOG_TURNED), (P,))
    return x


@triton.jit
def attend_to(highest, weight, weighted, values_seen, score, real, v, NEAR: tl.constexpr):
    """Add tokens to the maximum and sum of the softmax, and to the weighted and plain sums of the values."""
    higher = tl.maximum(highest, tl.max(score, axis=0))
    p = tl.where(real, tl.exp(score - higher), 0.0)
    fade = tl.exp(highest - higher)
    weighted = weighted * fade + sum_values(p, v, NEAR)
    values_seen += tl.sum(tl.sum(v.to(tl.float32), axis=2), axis=0)
    return higher, weight * fade + tl.sum(p, axis=0), weighted, values_seen


@triton.jit
def note_scores(at, real, score, place_ptr, score_ptr, noted):
    """Append positions and scores to those noted for the tally; returns their new number."""
    slot = noted + tl.cumsum(real.to(tl.int32), axis=0) - 1
    tl.store(place_ptr + slot, at.to(tl.int32), mask=real)
    tl.store(score_ptr + slot, score, mask=real)
    return noted + tl.sum(real.to(tl.int32), axis=0)


@triton.jit
def join_rest(highest, weight, rest, top, sink_ptr, SINKS: tl.constexpr):
    """The share of the tokens that were not chosen in the total softmax mass, the factor for the weights of
    the chosen, and the logarithm of the mass. With SINKS, the mass includes the sink at sink_ptr.
    """
    greatest = tl.where(rest > 0, tl.maximum(highest, top), highest)
    sink = greatest
    if SINKS:
        sink = tl.load(sink_ptr).to(tl.float32)
        greatest = tl.maximum(greatest, sink)
    fade = tl.exp(highest - greatest)
    others = tl.where(rest > 0, rest * tl.exp(top - greatest), 0.0)
    total = weight * fade + others
    if SINKS:
        total += tl.exp(sink - greatest)
    return others / total, fade / total, greatest + tl.log(total)


@triton.jit
def sum_of_values(
    values, values_n, value_sum, own, new, column,
    NEW: tl.constexpr, NEW_PAD: tl.constexpr, D_V: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """The sum of all values that the query sees; zeros if not needed (no MASS)."""
    total = tl.zeros_like(column).to(tl.float32)
    if MASS:
        total = tl.load(value_sum + column, mask=column < D_V, other=0.0)
        if NEW > 1:
            later = tl.arange(0, NEW_PAD)
            unseen = load_numbers(
                values + (own - new + later).to(tl.int64)[:, None] * values_n, column[None, :],
                ((later > new) & (later < NEW))[:, None] & (column < D_V)[None, :], D_V,
            )  # fmt: skip
            total -= tl.sum(unseen.to(tl.float32), axis=0)
    return total


@triton.jit
def attend_once_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr, best_ptr, turns_ptr, masses_ptr, shares_ptr,
    sums_ptr, groups_ptr, extra_rank_ptr, extra_at_ptr, list_rank_ptr, list_at_ptr, again_ptr,
    query_ptr, keys_ptr, values_ptr, value_sum_ptr, out_ptr, lse_ptr, place_ptr, score_ptr,
    attended_ptr, sink_ptr, apart_ptr, codes_b, codes_h, codes_w, scale_b, scale_h,
    query_b, query_h, query_n, keys_b, keys_h, keys_n, values_b, values_h, values_n, out_b, out_h, out_n,
    scaling, cap, least_share, sinks, recents, budget, room,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    GROUPS: tl.constexpr, LIST: tl.constexpr, BLOCK: tl.constexpr, MANHATTAN: tl.constexpr,
    MASS: tl.constexpr, FAST: tl.constexpr, CHAINED: tl.constexpr, TALLY: tl.constexpr,
    WARPS: tl.constexpr, NEAR: tl.constexpr,
    BOUND: tl.constexpr, FORCED: tl.constexpr, LOG_P: tl.constexpr, CAPPED: tl.constexpr,
    SINKS: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Choose tokens and attend to them, if all listed tokens can be held at once; program (query head of a
    batch, new token). Not for packed rows.

    Keys and values of all listed tokens are loaded while the border of the best is searched for.
    CHAINED: started before the previous launch ended. TALLY: write the positions and scores of the chosen
    tokens to place and score [B, H, N, budget]. BOUND, FORCED: as in `select_kernel`.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    wide_row = row.to(tl.int64)
    own = tl.load(length_ptr + batch) + new
    seen = own + 1
    first_sinks, first_recent, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    end = seen - recents
    dim, column, slot = tl.arange(0, P), tl.arange(0, D_V_PAD), tl.arange(0, LIST)
    more_near: tl.constexpr = min(EXTRAS_HELD.value, NEAR)
    keys = start_of_rows(keys_ptr, apart_ptr, batch, keys_b, KEYS, APART) + kv_head * keys_h
    values = start_of_rows(values_ptr, apart_ptr, batch, values_b, VALUES, APART) + kv_head * values_h
    value_sum = start_of_rows(value_sum_ptr, apart_ptr, batch, HEADS * D_V, VALUE_SUM, APART) + kv_head * D_V
    codes, scale, codes_w = codes_of_head(
        codes_ptr, scale_ptr, apart_ptr, batch, kv_head, codes_b, codes_h, codes_w, scale_b, scale_h, P, APART
    )
    query = query_ptr + batch * query_b + head * query_h + new * query_n
    extra_rank, extra_at = extra_rank_ptr + wide_row * room, extra_at_ptr + wide_row * room
    if CHAINED:
        gdc_wait()
    units, least = 0.0, 0
    if BOUND:  # before other keys and values take all registers
        units = tl.load(facts_ptr + row * FACTS) * UNITS_PER_NAT
        least = least_exponent(
            facts_ptr + row * FACTS, best_ptr + wide_row * (PLACES * GROUPS),
            shares_ptr + wide_row * (SHARES * GROUPS), query, keys, keys_n, scaling, 0.0, least_share,
            forced, first_sinks, first_recent, GROUPS, FORCED, D, P, LOG_P,
        )  # fmt: skip
    rank, at, extras, held, low, beyond, reached, masses, top, curve = shortlist(
        codes, codes_w, scale, words_ptr, facts_ptr + row * FACTS,
        best_ptr + wide_row * (PLACES * GROUPS), turns_ptr + wide_row * GROUPS,
        masses_ptr + wide_row * GROUPS, sums_ptr + wide_row * GROUPS, groups_ptr + wide_row * GROUPS,
        extra_rank, extra_at, list_rank_ptr + wide_row * LIST, list_at_ptr + wide_row * LIST,
        again_ptr, row, sinks, end, forced, want, cap,
        GROUPS, LIST, P, BLOCK, MANHATTAN, MASS, FAST, CAPPED,
    )  # fmt: skip
    always = slot < forced
    place = tl.where(always, tl.where(slot < first_sinks, slot, first_recent + slot - first_sinks), at)
    there = always | (rank > LOWEST)
    k = load_keys(place, there, keys, keys_n, dim, D)
    v = load_values(place, there, values, values_n, D_V, D_V_PAD, WARPS, NEAR)
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32) * scaling
    base = base_of(facts_ptr + row * FACTS, top, cap, CAPPED)
    value_total = sum_of_values(
        values, values_n, value_sum, own, new, column, NEW, NEW_PAD, D_V, MASS,
    )  # fmt: skip
    if BOUND:
        want = bounded_want(least, units, forced, rank, extra_rank, held, extras, want)
        tl.store(attended_ptr + row, forced + want)
    low, last = exact_border(
        rank, at, list_rank_ptr + wide_row * LIST, list_at_ptr + wide_row * LIST, extra_rank, extra_at,
        held, extras, low, beyond, reached, end, want, LIST,
    )  # fmt: skip
    best = reaches(rank, at, low, last) & (rank > LOWEST)
    real = best | always
    score = score_of(k, q, 0.0, real, cap, CAPPED)
    noted = tl.zeros((), tl.int32)
    if TALLY:
        place_ptr += wide_row * budget
        score_ptr += wide_row * budget
        noted = note_scores(place, real, score, place_ptr, score_ptr, noted)
    listed_highest = tl.max(score, axis=0)
    p = tl.where(real, tl.exp(score - listed_highest), 0.0)
    weight, mass = tl.reduce((p, masses - mass_of(rank, best, top, curve, CAPPED)), 0, sum_of_both)
    highest = listed_highest
    weighted = tl.zeros((WARPS, D_V_PAD // WARPS), tl.float32)
    values_seen = weighted
    for start in range(held, extras, EXTRAS_HELD):
        extra = start + tl.arange(0, EXTRAS_HELD)
        more = load_extras(extra_rank, extra, extras, LOWEST)
        more_at = load_extras(extra_at, extra, extras, 0)
        more_best = reaches(more, more_at, low, last) & (extra < extras)
        mass -= tl.sum(mass_of(more, more_best, top, curve, CAPPED), axis=0)
        more_k = load_keys(more_at, more_best, keys, keys_n, dim, D)
        more_v = load_values(more_at, more_best, values, values_n, D_V, D_V_PAD, WARPS, more_near)
        more_score = score_of(more_k, q, 0.0, more_best, cap, CAPPED)
        if TALLY:
            noted = note_scores(more_at, more_best, more_score, place_ptr, score_ptr, noted)
        highest, weight, weighted, values_seen = attend_to(
            highest, weight, weighted, values_seen, more_score, more_best, more_v, more_near
        )
    left = seen - forced - want
    share, factor, lse = join_rest(
        highest, weight, tl.where(left > 0, mass, 0.0), base, sink_ptr + head, SINKS
    )
    others = share / tl.maximum(left, 1).to(tl.float32)
    # The sum of the others is that of all values minus the chosen ones, so one sum over the chosen serves
    # both.
    of_each = tl.where(real, p * (tl.exp(listed_highest - highest) * factor) - others, 0.0)
    result = sum_values(of_each, v, NEAR) + weighted * factor - values_seen * others
    result = tl.reshape(result, (D_V_PAD,)) + value_total * others
    out = out_ptr + batch * out_b + head * out_h + new * out_n
    tl.store(out + column, result.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr + row, lse)


@triton.jit
def attend_kernel(
    query_ptr, keys_ptr, values_ptr, length_ptr, chosen_at_ptr, part_ptr, place_ptr, score_ptr, attended_ptr,
    apart_ptr, shift_ptr, place_in_ptr, begin_ptr, taken_ptr,
    query_b, query_h, query_n, keys_b, keys_h, keys_n, values_b, values_h, values_n,
    scaling, cap, sinks, recents, budget, slots, capacity,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    CHAINED: tl.constexpr, TALLY: tl.constexpr, WARPS: tl.constexpr, NEAR: tl.constexpr,
    BOUND: tl.constexpr, CAPPED: tl.constexpr, APART: tl.constexpr, PACKED: tl.constexpr, HOT: tl.constexpr,
):  # fmt: skip
    """Attend to some of the tokens that `select_kernel` chose; program (query head of a batch, new token,
    split of the chosen tokens).

    Writes its part to part float32 [B, H, N, SPLITS, PART_FACTS + 2 D_V_PAD]: maximum and sum of the softmax,
    and the weighted and plain sums of the values.
    CHAINED: started before the previous launch ended, and lets the next one start at its end. TALLY: as in
    `attend_once_kernel`. BOUND: attended [B, H, N] has the number of chosen tokens. PACKED: see
    `packed_rows.py`. HOT: keys and values are the `slots` of `HotRows`, which `fetch_kernel` has filled; the
    slots that it took are no longer the next.
    """
    pair, new, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    first = row.to(tl.int64) * budget
    seen = tl.load(length_ptr + batch) + new + 1
    first_sinks, first_recent, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    dim, column = tl.arange(0, P), tl.arange(0, D_V_PAD)
    query = query_ptr + batch * query_b + head * query_h + new * query_n
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32) * scaling
    keys = start_of_rows(keys_ptr, apart_ptr, batch, keys_b, KEYS, APART) + kv_head * keys_h
    values = start_of_rows(values_ptr, apart_ptr, batch, values_b, VALUES, APART) + kv_head * values_h
    chosen = forced + want
    highest = tl.full((), LOWEST, tl.float32)
    weight = tl.zeros((), tl.float32)
    weighted = tl.zeros((WARPS, D_V_PAD // WARPS), tl.float32)
    values_seen = weighted
    if CHAINED:
        gdc_wait()
    if BOUND:
        chosen = tl.load(attended_ptr + row)
    shift = tl.load(shift_ptr + row) * scaling if PACKED else 0.0
    line = batch * HEADS + kv_head
    if HOT:
        one = (head % GROUP == 0) & (new == 0) & (split == 0)
        begin = tl.load(begin_ptr + line, mask=one, other=0) + tl.load(taken_ptr + line, mask=one, other=0)
        tl.store(begin_ptr + line, begin % slots, mask=one)
        tl.store(taken_ptr + line, 0, mask=one)
    size = tl.cdiv(tl.cdiv(chosen, SPLITS), TOKENS) * TOKENS
    for start in range(split * size, tl.minimum(split * size + size, chosen), TOKENS):
        slot = start + tl.arange(0, TOKENS)
        at, real = chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at_ptr + first)
        place = at
        if HOT:
            place = tl.load(place_in_ptr + line * capacity + at, mask=real, other=0)
        k = load_keys(place, real, keys, keys_n, dim, D)
        v = load_values(place, real, values, values_n, D_V, D_V_PAD, WARPS, NEAR)
        score = score_of(k, q, shift, real, cap, CAPPED)
        if TALLY:
            tl.store(place_ptr + first + slot, at, mask=real)
            tl.store(score_ptr + first + slot, score, mask=real)
        highest, weight, weighted, values_seen = attend_to(
            highest, weight, weighted, values_seen, score, real, v, NEAR
        )
    if CHAINED:  # not before: programs that wait hold up those that read
        gdc_launch_dependents()
    part = part_ptr + (row.to(tl.int64) * SPLITS + split) * (2 * D_V_PAD + PART_FACTS)
    tl.store(part, highest)
    tl.store(part + 1, weight)
    tl.store(part + PART_FACTS + column, tl.reshape(weighted, (D_V_PAD,)))
    tl.store(part + PART_FACTS + D_V_PAD + column, tl.reshape(values_seen, (D_V_PAD,)))


@triton.jit
def merge_kernel(
    part_ptr, rest_ptr, values_ptr, value_sum_ptr, length_ptr, out_ptr, lse_ptr, attended_ptr, sink_ptr,
    apart_ptr, values_b, values_h, values_n, out_b, out_h, out_n, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D_V: tl.constexpr, D_V_PAD: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
    MASS: tl.constexpr, CHAINED: tl.constexpr, BOUND: tl.constexpr, SINKS: tl.constexpr,
    APART: tl.constexpr, PACKED: tl.constexpr, LOG_TURNED_V: tl.constexpr,
):  # fmt: skip
    """Join the splits of one query and the rest; program (query head of a batch, new token).

    CHAINED: started before the previous launch ended. BOUND: as in `attend_kernel`.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    own = tl.load(length_ptr + batch) + new
    seen = own + 1
    chosen = tl.minimum(budget, seen)
    split, column = tl.arange(0, SPLITS_PAD), tl.arange(0, D_V_PAD)
    real = split < SPLITS
    part = part_ptr + (row.to(tl.int64) * SPLITS + split) * (2 * D_V_PAD + PART_FACTS)
    columns = part[:, None] + PART_FACTS + column[None, :]
    if CHAINED:
        gdc_wait()
    if BOUND:
        chosen = tl.load(attended_ptr + row)
    mass, top = tl.load(rest_ptr + 2 * row), tl.load(rest_ptr + 2 * row + 1)
    value_total = sum_of_values(
        start_of_rows(values_ptr, apart_ptr, batch, values_b, VALUES, APART) + kv_head * values_h, values_n,
        start_of_rows(value_sum_ptr, apart_ptr, batch, HEADS * D_V, VALUE_SUM, APART) + kv_head * D_V,
        own, new, column, NEW, NEW_PAD, D_V, MASS,
    )  # fmt: skip
    tops = tl.load(part, mask=real, other=LOWEST)
    weights = tl.load(part + 1, mask=real, other=0.0)
    highest = tl.max(tops, axis=0)
    fade = tl.exp(tops - highest)
    weight = tl.sum(weights * fade, axis=0)
    weighted = tl.sum(tl.load(columns, mask=real[:, None], other=0.0) * fade[:, None], axis=0)
    values_seen = tl.sum(tl.load(columns + D_V_PAD, mask=real[:, None], other=0.0), axis=0)
    left = seen - chosen
    share, factor, lse = join_rest(
        highest, weight, tl.where(left > 0, mass, 0.0), top, sink_ptr + head, SINKS
    )
    # The sum of the others is that of all values minus the chosen ones.
    others = share / tl.maximum(left, 1).to(tl.float32)
    result = weighted * factor + (value_total - values_seen) * others
    result = turned_back(result, D_V_PAD, LOG_TURNED_V, PACKED)
    out = out_ptr + batch * out_b + head * out_h + new * out_n
    tl.store(out + column, result.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr + row, lse)


@triton.jit
def tally_kernel(
    place_ptr, score_ptr, lse_ptr, length_ptr, attended_ptr, tally_ptr, apart_ptr, tally_b, tally_n, tally_r,
    tally_c, budget, HEADS: tl.constexpr, NEW: tl.constexpr, BUDGET_PAD: tl.constexpr, BOUND: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """Add 1 and its softmax weight to tally [B, 2, C] at each chosen position; program (query head of a
    batch, new token). tally_n: between the tallies of new tokens, 0 if they share one. BOUND: as in
    `attend_kernel`.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    row, batch = pair * NEW + new, (pair // HEADS).to(tl.int64)
    slot = tl.arange(0, BUDGET_PAD)
    if BOUND:
        chosen = tl.load(attended_ptr + row)
    else:
        chosen = tl.minimum(budget, tl.load(length_ptr + batch) + new + 1)
    real = slot < chosen
    first = row.to(tl.int64) * budget
    at = tl.load(place_ptr + first + slot, mask=real, other=0).to(tl.int64)
    weight = tl.exp(tl.load(score_ptr + first + slot, mask=real, other=LOWEST) - tl.load(lse_ptr + row))
    if APART:
        tally_r = fact_of(apart_ptr, batch, TALLY_ROOM)
    tally = start_of(tally_ptr, apart_ptr, batch, tally_b, TALLY, APART) + new * tally_n + at * tally_c
    tl.atomic_add(tally, tl.full((BUDGET_PAD,), 1.0, tl.float32), mask=real, sem="relaxed")
    tl.atomic_add(tally + tally_r, weight, mask=real, sem="relaxed")
