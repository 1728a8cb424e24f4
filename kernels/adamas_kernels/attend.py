"""Exact attention over the chosen tokens, and what the others would have added; selection runs in the same
launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from adamas_kernels.coding import FACTS, LOWEST
from adamas_kernels.estimate import mass_anchor, mass_line, mass_of
from adamas_kernels.select import select_all, select_candidates

# Numbers before the vectors of a split: maximum, sum, mass of the rest, and what that is relative to.
PART_FACTS = tl.constexpr(4)


@triton.jit
def chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at):
    """Positions int64 of the chosen tokens of these slots, and which slots have one: sinks, recents, the
    best.
    """
    real = slot < chosen
    at = tl.load(chosen_at + slot - forced, mask=real & (slot >= forced), other=0)
    at = tl.where(slot < forced, tl.where(slot < first_sinks, slot, first_recent + slot - first_sinks), at)
    return at.to(tl.int64), real


@triton.jit
def scores_and_values(
    at, real, q, keys, keys_n, values, values_n, dim, column, D: tl.constexpr, D_V: tl.constexpr
):
    """Exact scores float32 [TOKENS], LOWEST where there is no token, and values float32 [TOKENS, D_V_PAD]."""
    k = tl.load(
        keys + at[:, None] * keys_n + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0
    )
    v = tl.load(
        values + at[:, None] * values_n + column[None, :],
        mask=real[:, None] & (column < D_V)[None, :], other=0.0,
    )  # fmt: skip
    score = tl.where(real, tl.sum(k.to(tl.float32) * q[None, :], axis=1), LOWEST)
    return score, v.to(tl.float32)


@triton.jit
def note_scores(slot, at, real, score, place_ptr, score_ptr):
    """Leave positions and scores for the tally."""
    tl.store(place_ptr + slot, at.to(tl.int32), mask=real)
    tl.store(score_ptr + slot, score, mask=real)


@triton.jit
def shares(highest, weight, rest, top):
    """The share of the tokens that were not chosen in the whole softmax mass, and the logarithm of that
    mass.
    """
    lse = highest + tl.log(weight)
    share = tl.zeros((), tl.float32)
    if rest > 0:
        rest_lse = tl.log(rest) + top
        both = tl.maximum(lse, rest_lse)
        both = both + tl.log(tl.exp(lse - both) + tl.exp(rest_lse - both))
        share = tl.exp(rest_lse - both)
        lse = both
    return share, lse


@triton.jit
def rest_of_values(
    values, values_n, value_sum, mass, left, own, new, column,
    NEW: tl.constexpr, NEW_PAD: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """Mass of the tokens that were not chosen, the sum of all values that the query sees, and how many are
    left.
    """
    rest = tl.zeros((), tl.float32)
    total = tl.zeros((D_V_PAD,), tl.float32)
    if MASS:
        rest = tl.where(left > 0, mass, 0.0)
        total = tl.load(value_sum + column, mask=column < D_V, other=0.0)
        later = tl.arange(0, NEW_PAD)
        unseen = tl.load(
            values + (own - new + later).to(tl.int64)[:, None] * values_n + column[None, :],
            mask=((later > new) & (later < NEW))[:, None] & (column < D_V)[None, :], other=0.0,
        )  # fmt: skip
        total -= tl.sum(unseen.to(tl.float32), axis=0)
    return rest, total, tl.maximum(left, 1).to(tl.float32)


@triton.jit
def attend_kernel(
    query_ptr, keys_ptr, values_ptr, codes_ptr, scale_ptr, value_sum_ptr, length_ptr,
    words_ptr, facts_ptr, rank_ptr, position_ptr, count_ptr, mass_ptr, threshold_ptr, ranks_ptr,
    chosen_at_ptr, chosen_rank_ptr, part_ptr, out_ptr, lse_ptr, place_ptr, score_ptr,
    query_b, query_h, query_n, keys_b, keys_h, keys_n, values_b, values_h, values_n,
    codes_b, codes_h, codes_w, scale_b, scale_h, out_b, out_h, out_n,
    capacity, scaling, sinks, recents, budget, target, programs,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    ROOM: tl.constexpr, BUDGET_PAD: tl.constexpr, PROGRAMS_PAD: tl.constexpr, BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr, ONCE: tl.constexpr, MANHATTAN: tl.constexpr,
    MASS: tl.constexpr, FAST: tl.constexpr, CHAINED: tl.constexpr, TALLY: tl.constexpr,
):  # fmt: skip
    """Program (query head of a batch, new token, split of the chosen tokens).

    ONCE: all chosen tokens are held at once, and the result is written here; otherwise each split leaves its
    part for `merge_kernel`. CHAINED: started before the launch before it ended. TALLY: leave the positions
    and scores of the chosen tokens in place and score [B, H, N, ROOM].
    """
    pair, new, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = head // GROUP
    row = pair * NEW + new
    first = row.to(tl.int64) * ROOM
    own = tl.load(length_ptr) + new
    seen = own + 1
    first_sinks = tl.minimum(sinks, seen)
    first_recent = tl.maximum(first_sinks, seen - recents)
    forced = first_sinks + seen - first_recent
    want = tl.maximum(tl.minimum(budget, seen) - forced, 0)
    fact = facts_ptr + row * FACTS
    every = tl.arange(0, ROOM)
    if CHAINED:
        gdc_wait()
    # All of these at once, whatever of it will be needed: each waits as long as one of them.
    count = tl.load(count_ptr + row)
    rank = tl.load(rank_ptr + first + every)
    candidate = tl.load(position_ptr + first + every)
    unit, offset, total, spread = tl.load(fact), tl.load(fact + 1), tl.load(fact + 2), tl.load(fact + 4)
    top = mass_anchor(unit, offset, tl.load(fact + 3))
    everything = tl.zeros((), tl.float32)
    if MASS:
        part = tl.arange(0, PROGRAMS_PAD)
        masses = tl.load(mass_ptr + row.to(tl.int64) * programs + part, mask=part < programs, other=0.0)
        everything = tl.sum(masses, axis=0)
    chosen_at, chosen_rank = chosen_at_ptr + first, chosen_rank_ptr + first
    if (count >= want) & (count <= ROOM):
        select_candidates(rank, candidate, every < count, chosen_at, chosen_rank, want, ROOM)
    else:
        select_all(
            codes_ptr + batch * codes_b + kv_head * codes_h, codes_w,
            scale_ptr + batch * scale_b + kv_head * scale_h,
            words_ptr, total,
            ranks_ptr + row.to(tl.int64) * capacity, chosen_at, chosen_rank,
            row, sinks, seen - recents, want, BLOCK, P, MANHATTAN, FAST,
        )  # fmt: skip
    tl.debug_barrier()
    number = tl.arange(0, BUDGET_PAD)
    best = tl.load(chosen_rank + number, mask=number < want, other=0.0)
    edge = tl.min(tl.where(number < want, best, float("inf")), axis=0)
    chosen_mass = tl.zeros((), tl.float32)
    if MASS:
        slope, level = mass_line(unit, offset, top)
        chosen_mass = tl.sum(tl.where(number < want, mass_of(best, slope, level), 0.0), axis=0)
    if (split == 0) & (new == NEW - 1):
        # The best tokens' excess over the last of them tells the slope of the tail, and so the rank at which
        # `target` candidates would pass. While all tokens fit the room, all pass.
        excess = tl.sum(tl.where(number < want, best - edge, 0.0), axis=0) / tl.maximum(want, 1)
        guess = edge + excess * tl.log(tl.maximum(want, 1).to(tl.float32) / target)
        open_wide = (seen - forced <= ROOM) | (want == 0)
        tl.store(threshold_ptr + pair, tl.where(open_wide, LOWEST, guess / tl.where(spread > 0, spread, 1.0)))

    dim, column = tl.arange(0, P), tl.arange(0, D_V_PAD)
    query = query_ptr + batch * query_b + head * query_h + new * query_n
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32) * scaling
    keys = keys_ptr + batch * keys_b + kv_head * keys_h
    values = values_ptr + batch * values_b + kv_head * values_h
    value_sum = value_sum_ptr + (batch * HEADS + kv_head) * D_V
    out = out_ptr + batch * out_b + head * out_h + new * out_n
    chosen = forced + want
    mass = everything - chosen_mass
    if ONCE:
        slot = tl.arange(0, TOKENS)
        at, real = chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at)
        score, v = scores_and_values(at, real, q, keys, keys_n, values, values_n, dim, column, D, D_V)
        if TALLY:
            note_scores(slot, at, real, score, place_ptr + first, score_ptr + first)
        highest = tl.max(score, axis=0)
        p = tl.where(real, tl.exp(score - highest), 0.0)
        weight = tl.sum(p, axis=0)
        rest, value_total, left = rest_of_values(
            values, values_n, value_sum, mass, seen - chosen, own, new, column,
            NEW, NEW_PAD, D_V, D_V_PAD, MASS,
        )  # fmt: skip
        share, lse = shares(highest, weight, rest, top)
        # The mean of the others is what all values add up to less the chosen ones: one sum does for both.
        factor = tl.where(real, p * ((1 - share) / weight) - share / left, 0.0)
        result = tl.sum(factor[:, None] * v, axis=0) + value_total * (share / left)
        tl.store(out + column, result.to(out_ptr.dtype.element_ty), mask=column < D_V)
        tl.store(lse_ptr + row, lse)
    else:
        highest = tl.full((), LOWEST, tl.float32)
        weight = tl.zeros((), tl.float32)
        weighted = tl.zeros((D_V_PAD,), tl.float32)
        values_seen = tl.zeros((D_V_PAD,), tl.float32)
        part_size = tl.cdiv(tl.cdiv(chosen, SPLITS), TOKENS) * TOKENS
        for start in range(split * part_size, tl.minimum(split * part_size + part_size, chosen), TOKENS):
            slot = start + tl.arange(0, TOKENS)
            at, real = chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at)
            score, v = scores_and_values(at, real, q, keys, keys_n, values, values_n, dim, column, D, D_V)
            if TALLY:
                note_scores(slot, at, real, score, place_ptr + first, score_ptr + first)
            higher = tl.maximum(highest, tl.max(score, axis=0))
            p = tl.where(real, tl.exp(score - higher), 0.0)
            fade = tl.exp(highest - higher)
            weight = weight * fade + tl.sum(p, axis=0)
            weighted = weighted * fade + tl.sum(p[:, None] * v, axis=0)
            values_seen += tl.sum(v, axis=0)
            highest = higher
        part = part_ptr + (row.to(tl.int64) * SPLITS + split) * (2 * D_V_PAD + PART_FACTS)
        tl.store(part, highest)
        tl.store(part + 1, weight)
        tl.store(part + 2, mass)
        tl.store(part + 3, top)
        tl.store(part + PART_FACTS + column, weighted)
        tl.store(part + PART_FACTS + D_V_PAD + column, values_seen)


@triton.jit
def merge_kernel(
    part_ptr, values_ptr, value_sum_ptr, length_ptr, out_ptr, lse_ptr,
    values_b, values_h, values_n, out_b, out_h, out_n, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D_V: tl.constexpr, D_V_PAD: tl.constexpr, SPLITS: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """Join the splits of one query; program (query head of a batch, new token)."""
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = head // GROUP
    row = pair * NEW + new
    own = tl.load(length_ptr) + new
    seen = own + 1
    chosen = tl.minimum(budget, seen)
    split, column = tl.arange(0, SPLITS), tl.arange(0, D_V_PAD)
    part = part_ptr + (row.to(tl.int64) * SPLITS + split) * (2 * D_V_PAD + PART_FACTS)
    tops = tl.load(part)
    highest = tl.max(tops, axis=0)
    fade = tl.exp(tops - highest)
    weight = tl.sum(tl.load(part + 1) * fade, axis=0)
    columns = part[:, None] + PART_FACTS + column[None, :]
    weighted = tl.sum(tl.load(columns) * fade[:, None], axis=0)
    values_seen = tl.sum(tl.load(columns + D_V_PAD), axis=0)
    first = part_ptr + row.to(tl.int64) * SPLITS * (2 * D_V_PAD + PART_FACTS)
    rest, value_total, left = rest_of_values(
        values_ptr + batch * values_b + kv_head * values_h, values_n,
        value_sum_ptr + (batch * HEADS + kv_head) * D_V,
        tl.load(first + 2), seen - chosen, own, new, column, NEW, NEW_PAD, D_V, D_V_PAD, MASS,
    )  # fmt: skip
    share, lse = shares(highest, weight, rest, tl.load(first + 3))
    result = weighted * ((1 - share) / weight) + (value_total - values_seen) * (share / left)
    out = out_ptr + batch * out_b + head * out_h + new * out_n
    tl.store(out + column, result.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr + row, lse)


@triton.jit
def tally_kernel(
    place_ptr, score_ptr, lse_ptr, length_ptr, tally_ptr, tally_b, tally_r, tally_c, budget,
    HEADS: tl.constexpr, NEW: tl.constexpr, ROOM: tl.constexpr, BUDGET_PAD: tl.constexpr,
):  # fmt: skip
    """Add 1 and its softmax weight to tally [B, 2, C] at each chosen position; program (query head of a
    batch, new token).
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    row = pair * NEW + new
    slot = tl.arange(0, BUDGET_PAD)
    real = slot < tl.minimum(budget, tl.load(length_ptr) + new + 1)
    first = row.to(tl.int64) * ROOM
    at = tl.load(place_ptr + first + slot, mask=real, other=0).to(tl.int64)
    weight = tl.exp(tl.load(score_ptr + first + slot, mask=real, other=LOWEST) - tl.load(lse_ptr + row))
    tally = tally_ptr + (pair // HEADS).to(tl.int64) * tally_b + at * tally_c
    tl.atomic_add(tally, tl.full((BUDGET_PAD,), 1.0, tl.float32), mask=real, sem="relaxed")
    tl.atomic_add(tally + tally_r, weight, mask=real, sem="relaxed")
