"""Exact top-k: the best of the candidates or, where those do not do, of all tokens. Ties go to the lowest
position.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.coding import INVALID
from adamas_kernels.estimate import mass_of, rank_tokens

SMALLEST = tl.constexpr(-(2**31))
LARGEST = tl.constexpr(2**31 - 1)


@triton.jit
def ordered(x):
    """float32 -> int32 with the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(key):
    """The inverse of `ordered`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def kth_largest(key, want, PIVOTS: tl.constexpr):
    """The `want`-th largest of int32 [ROOM], by cuts into PIVOTS + 1 parts; SMALLEST marks places without a
    key.

    `want` is at most the number of keys; for 0 the result is above none of them.
    """
    low = tl.min(tl.where(key == SMALLEST, LARGEST, key), axis=0).to(tl.int64)
    high = tl.maximum(tl.max(key, axis=0).to(tl.int64), low)
    pivot = tl.arange(0, PIVOTS) + 1
    while low < high:
        cut = low + ((high - low) * pivot + PIVOTS) // (PIVOTS + 1)  # rises; the last stays within high
        number = tl.sum((key[:, None] >= cut.to(tl.int32)[None, :]).to(tl.int32), axis=0)
        enough = number >= want
        low = tl.max(tl.where(enough, cut, low), axis=0)
        high = tl.min(tl.where(enough, high, cut - 1), axis=0)
        high = tl.where(tl.max((number == want).to(tl.int32), axis=0) > 0, low, high)
    # With exactly `want` keys at or above `low`, the smallest of them is the answer.
    return tl.min(tl.where(key >= low.to(tl.int32), key, LARGEST), axis=0)


@triton.jit
def position_bound(tied, at, need):
    """The position up to which the `need` lowest of the tied tokens lie."""
    low = tl.full((), -1, tl.int32)
    high = tl.max(tl.where(tied, at, -1), axis=0)
    while low < high:
        middle = low + (high - low) // 2
        if tl.sum((tied & (at <= middle)).to(tl.int32), axis=0) >= need:
            high = middle
        else:
            low = middle + 1
    return low


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
def select_candidates(
    rank_ptr, position_ptr, list_ptr, row, count, want, unit, offset, top,
    ROOM: tl.constexpr,
):  # fmt: skip
    """The common case: the candidates hold the best `want` tokens. Writes their positions, ascending by slot.

    Returns the smallest chosen rank, the mean excess over it, and the chosen tokens' estimated softmax mass.
    """
    slot = tl.arange(0, ROOM)
    there = slot < count
    base = row.to(tl.int64) * ROOM
    rank = tl.load(rank_ptr + base + slot, mask=there, other=INVALID)
    at = tl.load(position_ptr + base + slot, mask=there, other=0)
    key = tl.where(there, ordered(rank), SMALLEST)
    smallest = kth_largest(key, want, 8)
    above = key > smallest
    tied = there & (key == smallest)
    need = want - tl.sum(above.to(tl.int32), axis=0)
    bound = tl.full((), 2147483647, tl.int32)
    if tl.sum(tied.to(tl.int32), axis=0) > need:
        bound = position_bound(tied, at, need)
    best = above | (tied & (at <= bound))
    order = tl.cumsum(best.to(tl.int32), axis=0) - 1
    chosen = best & (order < want)  # all of them, or none where nothing is wanted
    tl.store(list_ptr + base + order, at, mask=chosen)
    edge = unordered(smallest)
    excess = tl.sum(tl.where(chosen, rank - edge, 0.0), axis=0) / tl.maximum(want, 1)
    mass = tl.sum(tl.where(chosen, mass_of(rank, unit, offset, top), 0.0), axis=0)
    return edge, excess, mass


@triton.jit
def select_all(
    codes, codes_w, scale, words_ptr, words_row, total, ranks, list_ptr, row, sinks, end, want,
    unit, offset, top,
    ROOM: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """The uncommon case: too few or too many candidates. Ranks all tokens again into `ranks` and bisects
    over them.
    """
    one = row + tl.zeros((1,), tl.int32)
    for block in range(0, tl.cdiv(end, BLOCK)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = (at >= sinks) & (at < end)
        rank = rank_tokens(
            codes, codes_w, scale, words_ptr, words_row, total + tl.zeros((1,), tl.float32), at, inside, one,
            1, BLOCK, P, MANHATTAN, FAST,
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
    base = row.to(tl.int64) * ROOM
    taken = tl.zeros((), tl.int32)
    edge = unordered(smallest)
    excess = tl.zeros((), tl.float32)
    mass = tl.zeros((), tl.float32)
    for block in range(0, tl.cdiv(end, BLOCK)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        rank = tl.load(ranks + at, mask=at < end, other=INVALID)
        key = ordered(rank)
        best = (at >= sinks) & (at < end) & ((key > smallest) | ((key == smallest) & (at <= last)))
        order = taken + tl.cumsum(best.to(tl.int32), axis=0) - 1
        chosen = best & (order < want)
        tl.store(list_ptr + base + order, at, mask=chosen)
        taken += tl.sum(chosen.to(tl.int32), axis=0)
        excess += tl.sum(tl.where(chosen, rank - edge, 0.0), axis=0)
        mass += tl.sum(tl.where(chosen, mass_of(rank, unit, offset, top), 0.0), axis=0)
    return edge, excess / tl.maximum(want, 1), mass
