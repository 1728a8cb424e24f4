"""Exact attention over the chosen tokens, and what the others would have added; selection runs in the same
launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.coding import FACTS, LOWEST
from adamas_kernels.estimate import mass_anchor
from adamas_kernels.select import select_all, select_candidates

# Numbers before the vectors of a split: maximum, sum, mass of the rest, and what that is relative to.
PART_FACTS = tl.constexpr(4)


@triton.jit
def finish(
    highest, weight, weighted, values_seen, rest, top, value_total, left, out_ptr, lse_ptr, column,
    D_V: tl.constexpr,
):  # fmt: skip
    """Merge the chosen tokens' attention with the mean value and estimated mass of the rest; write both
    results.
    """
    lse = highest + tl.log(weight)
    out = weighted / weight
    if rest > 0:
        rest_lse = tl.log(rest) + top
        both = tl.maximum(lse, rest_lse)
        both = both + tl.log(tl.exp(lse - both) + tl.exp(rest_lse - both))
        mean = (value_total - values_seen) / left
        out = out * tl.exp(lse - both) + mean * tl.exp(rest_lse - both)
        lse = both
    tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), mask=column < D_V)
    tl.store(lse_ptr, lse)


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
    words_ptr, facts_ptr, rank_ptr, position_ptr, count_ptr, mass_ptr, threshold_ptr, ranks_ptr, list_ptr,
    part_ptr, out_ptr, lse_ptr,
    query_b, query_h, query_n, keys_b, keys_h, keys_n, values_b, values_h, values_n,
    codes_b, codes_h, codes_w, scale_b, scale_h, out_b, out_h, out_n,
    capacity, scaling, sinks, recents, budget, target, blocks,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    ROOM: tl.constexpr, BLOCKS_PAD: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    SPLITS: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Program (query head of a batch, new token, split of the chosen tokens)."""
    pair, new, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = head // GROUP
    row = pair * NEW + new
    own = tl.load(length_ptr) + new
    seen = own + 1
    first_sinks = tl.minimum(sinks, seen)
    first_recent = tl.maximum(first_sinks, seen - recents)
    forced = first_sinks + seen - first_recent
    want = tl.maximum(tl.minimum(budget, seen) - forced, 0)
    fact = facts_ptr + row * FACTS
    unit, offset, total, spread = tl.load(fact), tl.load(fact + 1), tl.load(fact + 2), tl.load(fact + 4)
    top = mass_anchor(unit, offset, tl.load(fact + 3))
    everything = tl.zeros((), tl.float32)
    if MASS:
        block = tl.arange(0, BLOCKS_PAD)
        masses = tl.load(mass_ptr + row.to(tl.int64) * blocks + block, mask=block < blocks, other=0.0)
        everything = tl.sum(masses, axis=0)
    count = tl.load(count_ptr + row)
    if (count >= want) & (count <= ROOM):
        edge, excess, chosen_mass = select_candidates(
            rank_ptr, position_ptr, list_ptr, row, count, want, unit, offset, top, ROOM
        )
    else:
        edge, excess, chosen_mass = select_all(
            codes_ptr + batch * codes_b + kv_head * codes_h, codes_w,
            scale_ptr + batch * scale_b + kv_head * scale_h,
            words_ptr, P // 16 if MANHATTAN else P // 4, total,
            ranks_ptr + row.to(tl.int64) * capacity, list_ptr,
            row, sinks, seen - recents, want, unit, offset, top, ROOM, BLOCK, P, MANHATTAN, FAST,
        )  # fmt: skip
    tl.debug_barrier()
    if (split == 0) & (new == NEW - 1):
        # The best tokens' excess over the last of them tells the slope of the tail, and so the rank at which
        # `target` candidates would pass. While all tokens fit the room, all pass.
        guess = edge + excess * tl.log(tl.maximum(want, 1).to(tl.float32) / target)
        open_wide = (seen - forced <= ROOM) | (want == 0)
        tl.store(threshold_ptr + pair, tl.where(open_wide, LOWEST, guess / tl.where(spread > 0, spread, 1.0)))

    dim, column = tl.arange(0, P), tl.arange(0, D_V_PAD)
    query = query_ptr + batch * query_b + head * query_h + new * query_n
    q = tl.load(query + dim, mask=dim < D, other=0.0).to(tl.float32) * scaling
    keys = keys_ptr + batch * keys_b + kv_head * keys_h
    values = values_ptr + batch * values_b + kv_head * values_h
    highest = tl.full((), LOWEST, tl.float32)
    weight = tl.zeros((), tl.float32)
    weighted = tl.zeros((D_V_PAD,), tl.float32)
    values_seen = tl.zeros((D_V_PAD,), tl.float32)
    chosen = forced + want
    share = tl.cdiv(tl.cdiv(chosen, SPLITS), TOKENS) * TOKENS
    for start in range(split * share, tl.minimum(split * share + share, chosen), TOKENS):
        slot = start + tl.arange(0, TOKENS)
        real = slot < chosen
        at = tl.load(
            list_ptr + row.to(tl.int64) * ROOM + slot - forced, mask=real & (slot >= forced), other=0
        )
        at = tl.where(
            slot < forced, tl.where(slot < first_sinks, slot, first_recent + slot - first_sinks), at
        )
        at = at.to(tl.int64)
        k = tl.load(
            keys + at[:, None] * keys_n + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0
        )
        v = tl.load(
            values + at[:, None] * values_n + column[None, :],
            mask=real[:, None] & (column < D_V)[None, :],
            other=0.0,
        ).to(tl.float32)
        score = tl.where(real, tl.sum(k.to(tl.float32) * q[None, :], axis=1), LOWEST)
        higher = tl.maximum(highest, tl.max(score, axis=0))
        p = tl.where(real, tl.exp(score - higher), 0.0)
        fade = tl.exp(highest - higher)
        weight = weight * fade + tl.sum(p, axis=0)
        weighted = weighted * fade + tl.sum(p[:, None] * v, axis=0)
        values_seen += tl.sum(v, axis=0)
        highest = higher

    if SPLITS == 1:
        rest, value_total, left = rest_of_values(
            values, values_n, value_sum_ptr + (batch * HEADS + kv_head) * D_V, everything - chosen_mass,
            seen - chosen, own, new, column, NEW, NEW_PAD, D_V, D_V_PAD, MASS,
        )  # fmt: skip
        finish(
            highest, weight, weighted, values_seen, rest, top, value_total, left,
            out_ptr + batch * out_b + head * out_h + new * out_n, lse_ptr + row, column, D_V,
        )  # fmt: skip
    else:
        part = part_ptr + (row.to(tl.int64) * SPLITS + split) * (2 * D_V_PAD + PART_FACTS)
        tl.store(part, highest)
        tl.store(part + 1, weight)
        tl.store(part + 2, everything - chosen_mass)
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
    finish(
        highest, weight, weighted, values_seen, rest, tl.load(first + 3), value_total, left,
        out_ptr + batch * out_b + head * out_h + new * out_n, lse_ptr + row, column, D_V,
    )  # fmt: skip
