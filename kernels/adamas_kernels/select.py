"""Exact top-k: the best of the candidates or, where those do not do, of all tokens. Ties go to the lowest
position.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.coding import INVALID
from adamas_kernels.estimate import load_words, rank_tokens

NOTHING = tl.constexpr(-(2**63))  # sorts behind every token


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
def select_candidates(rank, at, there, chosen_at, chosen_rank, want, ROOM: tl.constexpr):
    """The common case: the candidates, rank and at [ROOM] where `there`, hold the best `want` tokens.

    Candidates come in the order in which programs found them. Sorting them by rank and position makes both
    the choice and the order of all later sums repeat.
    """
    key = (ordered(rank).to(tl.int64) << 32) | (0x7FFFFFFF - at).to(tl.int64)
    key = tl.sort(tl.where(there, key, NOTHING), descending=True)
    slot = tl.arange(0, ROOM)
    tl.store(chosen_at + slot, 0x7FFFFFFF - (key & 0xFFFFFFFF).to(tl.int32), mask=slot < want)
    tl.store(chosen_rank + slot, unordered((key >> 32).to(tl.int32)), mask=slot < want)


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
