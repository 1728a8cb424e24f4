"""Keeps the best few of many tokens in one pass, so that a selection takes the same work for all data.

Tokens are dealt to GROUPS groups, one to each per turn, see `dealt`. Each group keeps the ranks of its three
best tokens, the turns of the first two, and its softmax mass relative to the best (soft-capped scores are so
close that all masses are relative to one score). Ties go to earlier turns, which are lower positions. The
`want` best of all tokens are then among the groups' firsts and seconds, except in groups whose third is as
good as the last of these: those are re-ranked (`select.py`). Neighbours are in different groups, so that an
important passage does not fill one group. So are tokens a fixed distance apart, as in tables and logs,
because each turn deals in another order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.shares import NO_EXPONENT, SHARES, add_share, exponents

LOG2_E = tl.constexpr(1.4426950408889634)
HEADROOM = tl.constexpr(90.0)  # octaves above a weight of 1: sums of millions stay finite
PLACES = tl.constexpr(3)  # ranks that a group keeps
TURN_BITS = tl.constexpr(16)  # of the turn of a group's best; the second best's are above
TWIST = tl.constexpr(0x9E5)  # odd, so that turns cycle through all orders
TURN_MASK = tl.constexpr((1 << 16) - 1)


@triton.jit
def dealt(turn, group, GROUPS: tl.constexpr):
    """Position of the token that a group gets in a turn. The XOR maps sixteen neighbouring groups to sixteen
    neighbouring tokens.
    """
    return turn * GROUPS + (group ^ ((turn * TWIST) & (GROUPS - 1)))


@triton.jit
def empty_groups(like):
    """Groups without tokens, in the shape of int32 `like`: (best rank, second, third, turn of the best, of
    the second, mass, and its two integers, see `shares.py`).
    """
    none = tl.zeros_like(like)
    lowest = none.to(tl.float32) + LOWEST
    return lowest, lowest, lowest, none, none, none.to(tl.float32), none, none


@triton.jit
def curve_of(fact, cap, CAPPED: tl.constexpr):
    """How scores depend on ranks, as exponents of two, for queries whose facts are at these pointers: slope,
    offset and soft cap. Only CAPPED scores need the last two; of others only differences count.
    """
    slope = tl.load(fact) * LOG2_E
    offset = slope
    if CAPPED:
        offset = tl.load(fact + 1) * LOG2_E
    return slope, offset, cap * LOG2_E


@triton.jit
def weight_of(rank, top, curve, CAPPED: tl.constexpr):
    """The softmax weight of tokens from their ranks: relative to rank `top` or, if CAPPED, to the score of
    `base_of`, which all are close to.
    """
    slope, offset, cap = curve
    if CAPPED:
        score = cap - 2 * cap / (tl.exp2((rank * slope + offset) * (2 * LOG2_E / cap)) + 1)
        exponent = score - tl.maximum(cap - HEADROOM, 0.0)
    else:
        exponent = (rank - top) * slope
    return tl.exp2(exponent)


@triton.jit
def base_of(fact, top, cap, CAPPED: tl.constexpr):
    """The score that weights are relative to, see `weight_of`."""
    base = tl.maximum(cap - HEADROOM / LOG2_E, 0.0)
    if not CAPPED:
        base = tl.load(fact + 1) + tl.load(fact) * top
    return base


@triton.jit
def deal(
    groups, rank, inside, turn, curve, units, MASS: tl.constexpr, BOUND: tl.constexpr, CAPPED: tl.constexpr
):
    """The groups after one more token each with this rank, if it is `inside`. curve: see `curve_of`; units:
    its slope in units, see `reference.exponents`.
    """
    first, second, third, first_turn, second_turn, mass, high, low = groups
    rank = tl.where(inside, rank, LOWEST)
    leads = rank > first
    if MASS and CAPPED:
        mass += tl.where(inside, weight_of(rank, first, curve, CAPPED), 0.0)
    elif MASS:  # relative to the best so far: one exponential is enough, and it cannot overflow
        weight = tl.exp2(-tl.abs(rank - first) * curve[0])
        mass = tl.where(leads, mass * weight + 1.0, mass + tl.where(inside, weight, 0.0))
    if BOUND:
        exponent = tl.where(inside, exponents(rank * units), NO_EXPONENT)
        high, low = add_share(high, low, exponents(first * units), exponent)
    third = tl.maximum(third, tl.minimum(second, rank))
    second_turn = tl.where(leads, first_turn, tl.where(rank > second, turn, second_turn))
    second = tl.maximum(second, tl.minimum(first, rank))
    first_turn = tl.where(leads, turn, first_turn)
    first = tl.maximum(first, rank)
    return first, second, third, first_turn, second_turn, mass, high, low


@triton.jit
def store_groups(
    groups, best_ptr, turns_ptr, masses_ptr, shares_ptr, row, group, mask,
    GROUPS: tl.constexpr, MASS: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Write groups of queries, at indices row and group, to best float32 [rows, PLACES, GROUPS], turns int32
    and masses float32 [rows, GROUPS], and shares int32 [rows, SHARES, GROUPS].
    """
    first, second, third, first_turn, second_turn, mass, high, low = groups
    best = best_ptr + row.to(tl.int64) * (PLACES * GROUPS) + group
    place = row.to(tl.int64) * GROUPS + group
    tl.store(best, first, mask=mask)
    tl.store(best + GROUPS, second, mask=mask)
    tl.store(best + 2 * GROUPS, third, mask=mask)
    tl.store(turns_ptr + place, first_turn | (second_turn << TURN_BITS), mask=mask)
    if MASS:
        tl.store(masses_ptr + place, mass, mask=mask)
    if BOUND:
        shares = shares_ptr + row.to(tl.int64) * (SHARES * GROUPS) + group
        tl.store(shares, high, mask=mask)
        tl.store(shares + GROUPS, low, mask=mask)


@triton.jit
def position_of_first(turns, group, GROUPS: tl.constexpr):
    """Position of a group's best token."""
    return dealt(turns & TURN_MASK, group, GROUPS)


@triton.jit
def position_of_second(turns, group, GROUPS: tl.constexpr):
    """Position of a group's second best token."""
    return dealt((turns >> TURN_BITS) & TURN_MASK, group, GROUPS)
