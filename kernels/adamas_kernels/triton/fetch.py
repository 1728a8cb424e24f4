"""Brings chosen rows of keys and values into the slots of `HotRows`, before a step attends to them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.contract import LayerCache
from adamas_kernels.hot import HotRows, side_by_side
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.select import forced_and_wanted

CLAIMED = tl.constexpr(-1)  # the place of a token whose row is on its way
ROWS = 32  # that a program copies at a time
# Programs that copy. A bus brings as many random rows to 32 of them as to 1,056 (docs/performance.md), but
# most rows are there already, and each program finds that out by several loads, one after another.
PROGRAMS = 512
WARPS = 4
WORD = torch.int64


@triton.jit
def chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at):
    """Positions of the chosen tokens of these slots (sinks, recents, then the best), and which slots have
    one.
    """
    real = slot < chosen
    at = tl.load(chosen_at + slot - forced, mask=real & (slot >= forced), other=0)
    at = tl.where(slot < forced, tl.where(slot < first_sinks, slot, first_recent + slot - first_sinks), at)
    return at, real


@triton.jit
def copy_rows(rows, rows_n, at, copies, to, own, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr):
    """Copy rows `at` [TOKENS] to the slots `to`, where `own`."""
    column = tl.arange(0, WIDTH_PAD)
    inside = own[:, None] & (column < WIDTH)[None, :]
    found = tl.load(rows + at[:, None] * rows_n + column[None, :], mask=inside, other=0)
    tl.store(copies + to[:, None] * WIDTH + column[None, :], found, mask=inside)


@triton.jit
def fetch_kernel(
    rows_ptr, hot_ptr, place_ptr, token_ptr, stamp_ptr, begin_ptr, taken_ptr,
    length_ptr, chosen_at_ptr, attended_ptr, rows_b, rows_h, rows_n,
    sinks, recents, budget, slots, capacity, most,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr,
    TOKENS: tl.constexpr, SPLITS: tl.constexpr, CHAINED: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Program (query head of a batch, new token, share of its chosen tokens).

    Only one of those that choose a token copies it, as a rule: the one that claims its place. The step takes
    at most the next `most` slots, so copies in other slots last, and so do those that it made itself, by
    their stamp.
    CHAINED: started before the previous launch ended, and lets the next one start at once. BOUND: attended
    [B, H, N] has the number of chosen tokens.
    """
    pair, new, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // (HEADS * GROUP)).to(tl.int64), pair % (HEADS * GROUP)
    kv_head = (head // GROUP).to(tl.int64)
    row, line = pair * NEW + new, batch * HEADS + kv_head
    length = tl.load(length_ptr + batch)
    seen = length + new + 1
    first_sinks, first_recent, forced, want = forced_and_wanted(seen, sinks, recents, budget)
    chosen = forced + want
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    if BOUND:
        chosen = tl.load(attended_ptr + row)
    begin = tl.load(begin_ptr + line)
    places, tokens, stamps = place_ptr + line * capacity, token_ptr + line * slots, stamp_ptr + line * slots
    chosen_at = chosen_at_ptr + row.to(tl.int64) * budget
    rows = rows_ptr + batch * rows_b + kv_head * rows_h
    copies = hot_ptr + line * slots * WIDTH
    for start in range(split * TOKENS, chosen, SPLITS * TOKENS):
        slot = start + tl.arange(0, TOKENS)
        at, real = chosen_positions(slot, chosen, forced, first_sinks, first_recent, chosen_at)
        place = tl.load(places + at, mask=real, other=CLAIMED)
        there = tl.load(tokens + place, mask=place != CLAIMED, other=-1) == at
        stamp = tl.load(stamps + place, mask=place != CLAIMED, other=-1)
        lasts = ((place - begin + slots) % slots >= most) | (stamp == length)
        wanted = real & (place != CLAIMED) & ~(there & lasts)
        before = tl.atomic_xchg(
            places + at, tl.full((TOKENS,), CLAIMED, tl.int32), mask=wanted, sem="relaxed"
        )
        own = wanted & (before != CLAIMED)
        count = own.to(tl.int32)
        first = tl.atomic_add(taken_ptr + line, tl.sum(count, axis=0), sem="relaxed")
        to = (begin + first + tl.cumsum(count, axis=0) - 1) % slots
        tl.store(tokens + to, at, mask=own)
        tl.store(stamps + to, tl.zeros_like(to) + length, mask=own)
        copy_rows(rows, rows_n, at.to(tl.int64), copies, to.to(tl.int64), own, WIDTH, WIDTH_PAD)
        tl.store(places + at, to, mask=own)


def fetch(
    cache: LayerCache, hot: HotRows, chosen_at: Tensor, attended: Tensor,
    heads: int, new: int, budget: int, forced: tuple[int, int], *, chained: bool, bound: bool,
) -> None:  # fmt: skip
    """Make copies of all chosen tokens, see `fetch_kernel`. forced: sinks and recents."""
    batch, kv_heads = cache.keys.shape[:2]
    rows, copies = side_by_side(cache.keys, cache.values).view(WORD), hot.rows.view(WORD)
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    splits = min(max(1, PROGRAMS // (batch * heads * new)), triton.cdiv(budget, ROWS))
    fetch_kernel[(batch * heads, new, splits)](
        rows, copies, hot.place, hot.token, hot.stamp, hot.begin, hot.taken,
        cache.length, chosen_at, attended, *rows.stride()[:3],
        *forced, budget, hot.token.shape[2], hot.place.shape[2], heads // kv_heads * new * budget,
        HEADS=kv_heads, GROUP=heads // kv_heads, NEW=new,
        WIDTH=copies.shape[3], WIDTH_PAD=next_power(copies.shape[3]),
        TOKENS=ROWS, SPLITS=splits, CHAINED=chained, BOUND=bound, num_warps=WARPS, **chain,
    )  # fmt: skip
