"""Attention of a chunk of new tokens to chosen blocks of keys, and to the means of all others.

A query tile's chosen blocks come as a list, so work and memory traffic follow the number chosen. The means
of all blocks before the tile are read too, 1/64 of the keys, and count for the blocks that are left out.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.softmax import Softmax
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense import LN_2, scaled, scales_of
from adamas_kernels.triton.launch import next_power

# Highest score of a row that has seen none: below every real one, and so far above LOWEST, scaled or not,
# that what is hidden has no weight.
NONE_YET = tl.constexpr(-1e20)


@triton.jit
def absorb(highest, weight, weighted, score, v, factor, extra):
    """The softmax so far, joined by scores [ROWS, BLOCK], which are times `factor` plus `extra` in powers of
    two, of values v [BLOCK, D_V].
    """
    higher = tl.maximum(highest, tl.max(score, axis=1) * factor + extra)
    p = tl.exp2(score * factor - (higher - extra)[:, None])
    fade = tl.exp2(highest - higher)
    weight = weight * fade + tl.sum(p, axis=1)
    return higher, weight, tl.dot(p.to(v.dtype), v, weighted * fade[:, None])


@triton.jit
def sparse_prefill_kernel(
    query_ptr, key_ptr, value_ptr, key_mean_ptr, value_mean_ptr, chosen_ptr, list_ptr, count_ptr,
    out_ptr, lse_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    key_mean_b, key_mean_h, key_mean_n, value_mean_b, value_mean_h, value_mean_n, out_b, out_h, out_n,
    scale, cap, past, new, tiles, blocks,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr,
    D_V_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, STAGES: tl.constexpr, CAPPED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Attention from ROWS new tokens of one query head; program (those tokens, last first, and query head of
    a group; KV head of a batch).

    chosen: int8 [B, H, tiles, blocks], what is not 0 was chosen, list: int32 of that shape, the chosen ones,
    and count: int32 [B, H, tiles], all among blocks that lie wholly before the tile.
    """
    pair = tl.program_id(1)
    batch, kv_head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    head = kv_head * GROUP + tl.program_id(0) % GROUP
    part = tl.cdiv(new, ROWS) - 1 - tl.program_id(0) // GROUP
    begin = part * ROWS
    tile = begin // QUERY_BLOCK
    row, dim, column = begin + tl.arange(0, ROWS), tl.arange(0, P), tl.arange(0, D_V_PAD)
    at = tl.arange(0, BLOCK)
    real, own = row < new, past + row
    query = query_ptr + batch * query_b + head * query_h + row.to(tl.int64)[:, None] * query_n
    q = tl.load(query + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    keys, values = key_ptr + batch * key_b + kv_head * key_h, value_ptr + batch * value_b + kv_head * value_h
    key_means = key_mean_ptr + batch * key_mean_b + kv_head * key_mean_h
    value_means = value_mean_ptr + batch * value_mean_b + kv_head * value_mean_h
    line = (batch * (HEADS * GROUP) + head) * tiles + tile
    chosen, listed = chosen_ptr + line * blocks, list_ptr + line * blocks
    count = tl.load(count_ptr + line)
    whole = (past + tile * QUERY_BLOCK) // KEY_BLOCK  # blocks before the tile
    factor = 1.0 if CAPPED else scale
    highest = tl.full((ROWS,), NONE_YET, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, D_V_PAD), tl.float32)
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        block = start + at
        there = block < whole
        place = block.to(tl.int64)
        k = tl.load(
            key_means + place[None, :] * key_mean_n + dim[:, None],
            mask=there[None, :] & (dim < D)[:, None], other=0.0,
        )  # fmt: skip
        v = tl.load(
            value_means + place[:, None] * value_mean_n + column[None, :],
            mask=there[:, None] & (column < D_V)[None, :], other=0.0,
        )  # fmt: skip
        left = tl.load(chosen + block, mask=there, other=1) == 0
        score = tl.dot(q, k)
        if CAPPED:
            score = scaled(score, scale, cap, CAPPED)
        score = tl.where(left[None, :], score, LOWEST)
        highest, weight, weighted = absorb(
            highest, weight, weighted, score, v, factor, math.log2(KEY_BLOCK)
        )
    PARTS: tl.constexpr = KEY_BLOCK // BLOCK
    if TMA:
        key_rows = tl.make_tensor_descriptor(keys, [past + new, D], [key_n, 1], [BLOCK, P])
        value_rows = tl.make_tensor_descriptor(values, [past + new, D_V], [value_n, 1], [BLOCK, D_V_PAD])
    block = tl.load(listed)
    for step in tl.range(0, count * PARTS, num_stages=STAGES):
        start = block * KEY_BLOCK + step % PARTS * BLOCK
        block = tl.load(listed + (step + 1) // PARTS, mask=step + 1 < count * PARTS, other=0)
        if TMA:
            k = tl.trans(key_rows.load([start, 0]))
            v = value_rows.load([start, 0])
        else:
            place = (start + at).to(tl.int64)
            k = tl.load(keys + place[None, :] * key_n + dim[:, None], mask=(dim < D)[:, None], other=0.0)
            v = tl.load(
                values + place[:, None] * value_n + column[None, :], mask=(column < D_V)[None, :], other=0.0
            )
        score = tl.dot(q, k)
        if CAPPED:
            score = scaled(score, scale, cap, CAPPED)
        highest, weight, weighted = absorb(highest, weight, weighted, score, v, factor, 0.0)
    end = past + tl.minimum(begin + ROWS, new)
    for start in tl.range(whole * KEY_BLOCK, end, BLOCK, num_stages=1):
        place = (start + at).to(tl.int64)
        there = place < end
        k = tl.load(
            keys + place[None, :] * key_n + dim[:, None], mask=there[None, :] & (dim < D)[:, None], other=0.0
        )
        v = tl.load(
            values + place[:, None] * value_n + column[None, :],
            mask=there[:, None] & (column < D_V)[None, :], other=0.0,
        )  # fmt: skip
        score = tl.dot(q, k)
        if CAPPED:
            score = scaled(score, scale, cap, CAPPED)
        score = tl.where(place[None, :] <= own[:, None], score, LOWEST)
        highest, weight, weighted = absorb(highest, weight, weighted, score, v, factor, 0.0)
    out = out_ptr + batch * out_b + head * out_h + row.to(tl.int64)[:, None] * out_n + column[None, :]
    result = (weighted / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out, result, mask=real[:, None] & (column < D_V)[None, :])
    lse = lse_ptr + (batch * (HEADS * GROUP) + head) * new + row
    tl.store(lse, highest * LN_2 + tl.log(weight), mask=real)
