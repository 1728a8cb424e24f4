"""Device functions shared by several Triton kernels. Float operations and their order are those of
`reference.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.reference import GAUSSIAN_EDGE, QUERY_LEVELS

EDGE = tl.constexpr(GAUSSIAN_EDGE)
LEVELS = tl.constexpr(float(QUERY_LEVELS))
# Below every rank and score; means none. A difference of infinities would be NaN.
LOWEST = tl.constexpr(-1e30)
FACTS = tl.constexpr(4)  # numbers kept for each query, see `encode.py`
ROUNDER = tl.constexpr(
    12582912.0
)  # 1.5 * 2^23: adding it to a small float32 rounds to an integer, halves to even


@triton.jit
def rotate(x, ROWS: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr):
    """Fast Hadamard transform of float32 [ROWS, P]."""
    column = tl.broadcast_to(tl.arange(0, P)[None, :], (ROWS, P))
    for stage in tl.static_range(LOG_P):
        other = tl.gather(x, column ^ (1 << stage), axis=1)
        x = tl.where((column >> stage) & 1 == 0, x + other, other - x)
    return x * (P**-0.5)


@triton.jit
def soft_capped(score, cap, CAPPED: tl.constexpr):
    """Scores unchanged, or if CAPPED, `cap` tanh(score / cap)."""
    if CAPPED:
        score = cap - 2 * cap / (tl.exp(score * (2 / cap)) + 1)
    return score


@triton.jit
def tree_sum(x, ROWS: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr):
    """Sum float32 [ROWS, P] over its columns by adding halves, in the reference's order."""
    column = tl.broadcast_to(tl.arange(0, P)[None, :], (ROWS, P))
    for stage in tl.static_range(LOG_P):
        x += tl.gather(x, column ^ (P >> (stage + 1)), axis=1)
    return tl.max(x, axis=1)  # all are equal


@triton.jit
def bucketize(x, edge):
    """The number of edges (-t, 0, t) strictly below: int32 0..3."""
    return (x > -edge).to(tl.int32) + (x > 0).to(tl.int32) + (x > edge).to(tl.int32)


@triton.jit
def pack_codes(codes, ROWS: tl.constexpr, P: tl.constexpr):
    """Codes int32 [ROWS, P] -> words int32 [ROWS, P / 16]; coordinate 4i + b of a word at bit 8b + 2i."""
    grouped = tl.reshape(codes, (ROWS, P // 16, 4, 4))
    step = tl.arange(0, 4)
    shift = 2 * step[None, None, :, None] + 8 * step[None, None, None, :]
    return tl.sum(tl.sum(grouped << shift, axis=3), axis=2)


@triton.jit
def pack_bytes(values, ROWS: tl.constexpr, P: tl.constexpr):
    """Integers -128..127, int32 [ROWS, P] -> four per word, int32 [ROWS, P / 4], lowest coordinate lowest."""
    grouped = tl.reshape(values & 0xFF, (ROWS, P // 4, 4))
    shift = 8 * tl.arange(0, 4)
    return tl.sum(grouped << shift[None, None, :], axis=2)


@triton.jit
def encode(x, balance, mean, edge, ROWS: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr):
    """Keys float32 [ROWS, P] -> (words int32 [ROWS, P / 16], scale float32 [ROWS])."""
    centred = rotate(x * balance, ROWS, P, LOG_P) - mean
    codes = bucketize(centred, edge)
    levels = (2 * codes - 3).to(tl.float32)
    length = tree_sum(levels * levels, ROWS, P, LOG_P)
    scale = tl.div_rn(tree_sum(centred * levels, ROWS, P, LOG_P), length)
    return pack_codes(codes, ROWS, P), scale


@triton.jit
def quantize(rotated, ROWS: tl.constexpr, P: tl.constexpr):
    """Rotated queries float32 [ROWS, P] -> (integers -127..127 as int32, step float32 [ROWS])."""
    step = tl.div_rn(tl.max(tl.abs(rotated), axis=1), tl.full((ROWS,), LEVELS, tl.float32))
    unit = tl.where(step > 0, step, 1.0)[:, None]
    scaled = tl.div_rn(rotated, tl.broadcast_to(unit, (ROWS, P)))
    return ((scaled + ROUNDER) - ROUNDER).to(tl.int32), step
