"""Exact attention over the chosen tokens, and what the others would have added."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.coding import LOWEST
from adamas_kernels.select import forced_and_wanted

# Numbers before the vectors of a split: maximum and sum, and two that keep the vectors aligned.
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
def sum_of_values(
    values, values_n, value_sum, own, new, column,
    NEW: tl.constexpr, NEW_PAD: tl.constexpr, D_V: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """The sum of all values that the query sees; zeros where nothing needs it."""
    total = tl.zeros_like(column).to(tl.float32)
    if MASS:
        total = tl.load(value_sum + column, mask=column < D_V, other=0.0)
        if NEW > 1:
            later = tl.arange(0, NEW_PAD)
            unseen = tl.load(
                values + (own - new + later).to(tl.int64)[:, None] * values_n + column[None, :],
                mask=((later > new) & (later < NEW))[:, None] & (column < D_V)[None, :], other=0.0,
            )  # fmt: skip
            total -= tl.sum(unseen.to(tl.float32), axis=0)
    return total


@triton.jit
def attend_once_kernel(
    query_ptr, keys_ptr, values_ptr, value_sum_ptr, length_ptr, chosen_at_ptr, rest_ptr, out_ptr, lse_ptr,
    place_ptr, score_ptr,
    query_b, query_h, query_n, keys_b, keys_h, keys_n, values_b, values_h, values_n, out_b, out_h, out_n,
    scaling, sinks, recents, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr, TOKENS: tl.constexpr,
    MASS: tl.constexpr, CHAINED: tl.constexpr, TALLY: tl.constexpr,
):  # fmt: skip
    """Attend to the chosen tokens where all can be held at once; program (query head of a batch, new token).

    CHAINED: started before the launch before it ended. TALLY: leave the positions and scores of the chosen
    tokens in place and score [B, H, N, budget].
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    first = row.to(tl.int64) * budget
    own = tl.load(length_ptr) + new
    seen = own + 1
    first_sinks, first_recent, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    chosen = forced + want
    dim, column, slot = tl.arange(0, P), tl.arange(0, D_V_PAD), tl.arange(0, TOKENS)
    keys = keys_ptr + batch * keys_b + kv_head * keys_h
    values = values_ptr + batch * values_b + kv_head * values_h
    query = query_ptr + batch * query_b + head * query_h + new * query_n
    if CHAINED:
        gdc_wait()
    at, real = chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at_ptr + first)
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32) * scaling
    mass, top = tl.load(rest_ptr + 2 * row), tl.load(rest_ptr + 2 * row + 1)
    value_total = sum_of_values(
        values, values_n, value_sum_ptr + (batch * HEADS + kv_head) * D_V, own, new, column,
        NEW, NEW_PAD, D_V, MASS,
    )  # fmt: skip
    score, v = scores_and_values(at, real, q, keys, keys_n, values, values_n, dim, column, D, D_V)
    if TALLY:
        note_scores(slot, at, real, score, place_ptr + first, score_ptr + first)
    highest = tl.max(score, axis=0)
    p = tl.where(real, tl.exp(score - highest), 0.0)
    weight = tl.sum(p, axis=0)
    left = seen - chosen
    share, lse = shares(highest, weight, tl.where(left > 0, mass, 0.0), top)
    others = share / tl.maximum(left, 1).to(tl.float32)
    # The mean of the others is what all values add up to less the chosen ones: one sum does for both.
    factor = tl.where(real, p * ((1 - share) / weight) - others, 0.0)
    result = tl.sum(factor[:, None] * v, axis=0) + value_total * others
    out = out_ptr + batch * out_b + head * out_h + new * out_n
    tl.store(out + column, result.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr + row, lse)


@triton.jit
def attend_kernel(
    query_ptr, keys_ptr, values_ptr, length_ptr, chosen_at_ptr, part_ptr, place_ptr, score_ptr,
    query_b, query_h, query_n, keys_b, keys_h, keys_n, values_b, values_h, values_n,
    scaling, sinks, recents, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    CHAINED: tl.constexpr, TALLY: tl.constexpr,
):  # fmt: skip
    """Attend to some of the tokens that `select_kernel` chose; program (query head of a batch, new token,
    split of the chosen tokens).

    Leaves its part in part float32 [B, H, N, SPLITS, PART_FACTS + 2 D_V_PAD]: maximum and sum of the softmax,
    weighted sum of the values, and their plain sum.
    CHAINED: started before the launch before it ended, and lets the next one start at once. TALLY: as in
    `attend_once_kernel`.
    """
    pair, new, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    first = row.to(tl.int64) * budget
    seen = tl.load(length_ptr) + new + 1
    first_sinks, first_recent, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    dim, column = tl.arange(0, P), tl.arange(0, D_V_PAD)
    query = query_ptr + batch * query_b + head * query_h + new * query_n
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32) * scaling
    keys = keys_ptr + batch * keys_b + kv_head * keys_h
    values = values_ptr + batch * values_b + kv_head * values_h
    chosen = forced + want
    highest = tl.full((), LOWEST, tl.float32)
    weight = tl.zeros((), tl.float32)
    weighted = tl.zeros((D_V_PAD,), tl.float32)
    values_seen = tl.zeros((D_V_PAD,), tl.float32)
    size = tl.cdiv(tl.cdiv(chosen, SPLITS), TOKENS) * TOKENS
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    for start in range(split * size, tl.minimum(split * size + size, chosen), TOKENS):
        slot = start + tl.arange(0, TOKENS)
        at, real = chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at_ptr + first)
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
    tl.store(part + PART_FACTS + column, weighted)
    tl.store(part + PART_FACTS + D_V_PAD + column, values_seen)


@triton.jit
def merge_kernel(
    part_ptr, rest_ptr, values_ptr, value_sum_ptr, length_ptr, out_ptr, lse_ptr,
    values_b, values_h, values_n, out_b, out_h, out_n, budget,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D_V: tl.constexpr, D_V_PAD: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr,
    MASS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Join the splits of one query and the rest; program (query head of a batch, new token).

    CHAINED: started before the launch before it ended.
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row = pair * NEW + new
    own = tl.load(length_ptr) + new
    seen = own + 1
    chosen = tl.minimum(budget, seen)
    split, column = tl.arange(0, SPLITS_PAD), tl.arange(0, D_V_PAD)
    real = split < SPLITS
    part = part_ptr + (row.to(tl.int64) * SPLITS + split) * (2 * D_V_PAD + PART_FACTS)
    columns = part[:, None] + PART_FACTS + column[None, :]
    if CHAINED:
        gdc_wait()
    mass, top = tl.load(rest_ptr + 2 * row), tl.load(rest_ptr + 2 * row + 1)
    value_total = sum_of_values(
        values_ptr + batch * values_b + kv_head * values_h, values_n,
        value_sum_ptr + (batch * HEADS + kv_head) * D_V, own, new, column, NEW, NEW_PAD, D_V, MASS,
    )  # fmt: skip
    tops = tl.load(part, mask=real, other=LOWEST)
    weights = tl.load(part + 1, mask=real, other=0.0)
    highest = tl.max(tops, axis=0)
    fade = tl.exp(tops - highest)
    weight = tl.sum(weights * fade, axis=0)
    weighted = tl.sum(tl.load(columns, mask=real[:, None], other=0.0) * fade[:, None], axis=0)
    values_seen = tl.sum(tl.load(columns + D_V_PAD, mask=real[:, None], other=0.0), axis=0)
    left = seen - chosen
    share, lse = shares(highest, weight, tl.where(left > 0, mass, 0.0), top)
    others = share / tl.maximum(left, 1).to(tl.float32)
    result = weighted * ((1 - share) / weight) + (value_total - values_seen) * others
    out = out_ptr + batch * out_b + head * out_h + new * out_n
    tl.store(out + column, result.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr + row, lse)


@triton.jit
def tally_kernel(
    place_ptr, score_ptr, lse_ptr, length_ptr, tally_ptr, tally_b, tally_r, tally_c, budget,
    HEADS: tl.constexpr, NEW: tl.constexpr, BUDGET_PAD: tl.constexpr,
):  # fmt: skip
    """Add 1 and its softmax weight to tally [B, 2, C] at each chosen position; program (query head of a
    batch, new token).
    """
    pair, new = tl.program_id(0), tl.program_id(1)
    row = pair * NEW + new
    slot = tl.arange(0, BUDGET_PAD)
    real = slot < tl.minimum(budget, tl.load(length_ptr) + new + 1)
    first = row.to(tl.int64) * budget
    at = tl.load(place_ptr + first + slot, mask=real, other=0).to(tl.int64)
    weight = tl.exp(tl.load(score_ptr + first + slot, mask=real, other=LOWEST) - tl.load(lse_ptr + row))
    tally = tally_ptr + (pair // HEADS).to(tl.int64) * tally_b + at * tally_c
    tl.atomic_add(tally, tl.full((BUDGET_PAD,), 1.0, tl.float32), mask=real, sem="relaxed")
    tl.atomic_add(tally + tally_r, weight, mask=real, sem="relaxed")
