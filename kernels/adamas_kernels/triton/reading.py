"""The means of blocks of keys and values, and which blocks of keys each block of queries reads, on a GPU.

The choice is one launch. A program takes means of queries, multiplies them with all means of parts, keeps
every block's loss against what is always read (the sum over all is known at the end only), and then reads
the losses again, divides, and writes the chosen blocks as bits and as a list.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.reading import (
    KEY_BLOCK,
    KEY_PART,
    NEAR,
    QUERY_BLOCK,
    QUERY_PART,
    BlockMeans,
    ReadSettings,
)
from adamas_kernels.softmax import Softmax
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense import scaled, scales_of
from adamas_kernels.triton.launch import next_power

WORD = 64  # blocks whose bits are one word
# Highest score of a row that has seen none: below every real one, and so far above LOWEST, scaled or not,
# that what is hidden has no weight.
NONE_YET = tl.constexpr(-1e20)
LARGEST = tl.constexpr(50.0)  # exponent that a share is held to: sums and products stay finite
# Of a program: numbers of means of queries, and of parts at a time, and at most how many of each.
MEAN_NUMBERS, PART_NUMBERS = 16384, 8192
MOST_MEANS, MOST_PARTS = 128, 64
CHOOSE_STAGES = 3
CHOOSE_WARPS = 8
LOSSES = 1 << 26  # that are kept at a time


@triton.jit
def summarize_kernel(
    key_ptr, value_ptr, key_mean_ptr, value_mean_ptr, part_ptr,
    key_b, key_h, key_n, value_b, value_h, value_n, key_mean_b, key_mean_h, key_mean_n,
    value_mean_b, value_mean_h, value_mean_n, part_b, part_h, part_n, first,
    HEADS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    KEY_BLOCK: tl.constexpr, KEY_PART: tl.constexpr,
):  # fmt: skip
    """Means of one block, the one number `first` and those after it; program (block, KV head of a batch)."""
    pair = tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    block = (first + tl.program_id(0)).to(tl.int64)
    part_count: tl.constexpr = KEY_BLOCK // KEY_PART
    token, part = block * KEY_BLOCK + tl.arange(0, KEY_BLOCK), block * part_count + tl.arange(0, part_count)
    dim, column = tl.arange(0, P), tl.arange(0, D_V_PAD)
    key = key_ptr + batch * key_b + head * key_h + token[:, None] * key_n + dim[None, :]
    k = tl.load(key, mask=(dim < D)[None, :], other=0.0).to(tl.float32)
    of_parts = tl.sum(tl.reshape(k, (part_count, KEY_PART, P)), axis=1) / KEY_PART
    parts = part_ptr + batch * part_b + head * part_h + part[:, None] * part_n + dim[None, :]
    tl.store(parts, of_parts.to(part_ptr.dtype.element_ty), mask=(dim < D)[None, :])
    mean = tl.sum(of_parts, axis=0) / part_count
    key_mean = key_mean_ptr + batch * key_mean_b + head * key_mean_h + block * key_mean_n + dim
    tl.store(key_mean, mean.to(key_mean_ptr.dtype.element_ty), mask=dim < D)
    value = value_ptr + batch * value_b + head * value_h + token[:, None] * value_n + column[None, :]
    v = tl.load(value, mask=(column < D_V)[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=0) / KEY_BLOCK
    value_mean = value_mean_ptr + batch * value_mean_b + head * value_mean_h + block * value_mean_n + column
    tl.store(value_mean, mean.to(value_mean_ptr.dtype.element_ty), mask=column < D_V)


def summarize(keys: Tensor, values: Tensor, means: BlockMeans, start: int) -> None:
    """See `reading.summarize`."""
    batch, heads, size, dim = keys.shape
    first, last = start // KEY_BLOCK, size // KEY_BLOCK
    if first == last:
        return
    dim_v = values.shape[3]
    summarize_kernel[(last - first, batch * heads)](
        keys, values, means.keys, means.values, means.parts, *keys.stride()[:3], *values.stride()[:3],
        *means.keys.stride()[:3], *means.values.stride()[:3], *means.parts.stride()[:3], first,
        HEADS=heads, D=dim, P=next_power(dim), D_V=dim_v, D_V_PAD=next_power(dim_v), KEY_BLOCK=KEY_BLOCK,
        KEY_PART=KEY_PART, num_warps=4,
    )  # fmt: skip


@triton.jit
def choose_kernel(
    query_ptr, key_ptr, part_ptr, loss_ptr, bits_ptr, list_ptr, count_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, part_b, part_h, part_n,
    scale, cap, tolerance, past, new, tiles, pitch, first_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, KEY_PART: tl.constexpr,
    QUERY_PART: tl.constexpr, NEAR: tl.constexpr, WORD: tl.constexpr, STAGES: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Blocks for ROWS means of queries of one head; program (those means, last first; query head of a batch,
    from `first_head` on).

    Leaves, for `tiles` blocks of queries each, bits: int64 [B, H, tiles, pitch / WORD], ones for what does
    not count by its mean, list: int32 [B, H, tiles, pitch], the chosen blocks wholly before the tile, and
    count: int32 [B, H, tiles], of them. loss: bfloat16 [programs, pitch, ROWS], to use.
    """
    parts_each: tl.constexpr = KEY_BLOCK // KEY_PART  # parts of a block
    means_each: tl.constexpr = QUERY_BLOCK // QUERY_PART  # means of a block of queries
    tile_count: tl.constexpr = ROWS // means_each
    block_count: tl.constexpr = PARTS // parts_each
    line = first_head + tl.program_id(1)
    batch, head = (line // (HEADS * GROUP)).to(tl.int64), (line % (HEADS * GROUP)).to(tl.int64)
    part_of = tl.num_programs(0) - 1 - tl.program_id(0)
    begin = part_of * tile_count
    mean, dim = begin * means_each + tl.arange(0, ROWS), tl.arange(0, P)
    query = query_ptr + batch * query_b + head * query_h + dim[None, :]
    summed = tl.zeros((ROWS, P), tl.float32)
    for turn in tl.range(QUERY_PART, num_stages=1):
        row = mean * QUERY_PART + turn
        inside = (row < new)[:, None] & (dim < D)[None, :]
        summed += tl.load(query + row.to(tl.int64)[:, None] * query_n, mask=inside, other=0.0).to(tl.float32)
    present = tl.maximum(tl.minimum(new - mean * QUERY_PART, QUERY_PART), 1)
    q = (summed / present[:, None]).to(part_ptr.dtype.element_ty)
    near = tl.maximum((past + mean // means_each * QUERY_BLOCK) // KEY_BLOCK - NEAR, 1)
    own = past + tl.minimum(mean * QUERY_PART + QUERY_PART, new) - 1
    factor = 1.0 if CAPPED else scale
    keys = key_ptr + batch * key_b + head // GROUP * key_h
    at = tl.arange(0, KEY_BLOCK)
    highest = tl.full((ROWS,), NONE_YET, tl.float32)
    always = tl.zeros((ROWS,), tl.float32)
    start_near = tl.maximum((past + begin * QUERY_BLOCK) // KEY_BLOCK - NEAR, 1)
    last = tl.minimum(past + (begin + tile_count) * QUERY_BLOCK, past + new)
    for step in tl.range(start_near - 1, tl.cdiv(last, KEY_BLOCK), num_stages=2):
        block = tl.where(step < start_near, 0, step)  # the first one, and then the near ones
        token = block * KEY_BLOCK + at
        k = tl.load(
            keys + token.to(tl.int64)[None, :] * key_n + dim[:, None],
            mask=(token < last)[None, :] & (dim < D)[:, None], other=0.0,
        )  # fmt: skip
        score = tl.dot(q, k)
        if CAPPED:
            score = scaled(score, scale, cap, CAPPED)
        seen = ((block == 0) | (block >= near))[:, None] & (token[None, :] <= own[:, None])
        score = tl.where(seen, score, LOWEST)
        higher = tl.maximum(highest, tl.max(score, axis=1) * factor)
        always = always * tl.exp2(highest - higher) + tl.sum(
            tl.exp2(score * factor - higher[:, None]), axis=1
        )
        highest = higher
    usual = highest + tl.log2(always)
    shares = tl.zeros((ROWS, block_count), tl.float32)  # of blocks, in units of what is always read
    # Parts of a block lie apart in a product, so that one thread holds all of them.
    lane = tl.arange(0, PARTS)
    lane = lane % block_count * parts_each + lane // block_count
    parts = part_ptr + batch * part_b + head // GROUP * part_h + dim[:, None]
    row, one = tl.arange(0, ROWS), tl.arange(0, block_count)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    losses = loss_ptr + program.to(tl.int64) * pitch * ROWS
    behind = tl.minimum(begin + tile_count, tiles) - 1
    until = tl.maximum((past + behind * QUERY_BLOCK) // KEY_BLOCK - NEAR, 1)
    for start in tl.range(0, until, block_count, num_stages=STAGES):
        place = start * parts_each + lane
        k = tl.load(
            parts + place.to(tl.int64)[None, :] * part_n,
            mask=(place < until * parts_each)[None, :] & (dim < D)[:, None], other=0.0,
        )  # fmt: skip
        score = tl.reshape(tl.dot(q, k), (ROWS, parts_each, block_count))
        if CAPPED:
            score = scaled(score, scale, cap, CAPPED)
        centre = tl.sum(score, axis=1) / parts_each
        ratio = (
            tl.sum(tl.exp2(tl.minimum((score - centre[:, None, :]) * factor, LARGEST)), axis=1) / parts_each
        )
        block = start + one
        share = tl.exp2(tl.minimum(centre * factor + (math.log2(KEY_BLOCK) - usual[:, None]), LARGEST))
        hidden = (block == 0)[None, :] | (block[None, :] >= near[:, None])
        shares += tl.where(hidden, 0.0, share * ratio)
        loss = share * (ratio - 1)
        tl.store(
            losses + block.to(tl.int64)[None, :] * ROWS + row[:, None], loss.to(tl.bfloat16),
            mask=(block < until)[None, :],
        )  # fmt: skip
    tl.debug_barrier()
    inverse = 1 / (1 + tl.sum(shares, axis=1))
    tile = begin + tl.arange(0, tile_count)
    position = past + tile * QUERY_BLOCK
    near, whole = tl.maximum(position // KEY_BLOCK - NEAR, 1), position // KEY_BLOCK
    there = tile < tiles
    out = (batch * (HEADS * GROUP) + head) * tiles + tile
    count = tl.zeros((tile_count,), tl.int32)
    wide = tl.arange(0, WORD)
    for start in tl.range(0, pitch, WORD, num_stages=1):
        block = start + wide
        loss = tl.load(
            losses + block.to(tl.int64)[None, :] * ROWS + row[:, None], mask=(block < until)[None, :],
            other=0.0,
        )  # fmt: skip
        loss = tl.max(
            tl.reshape(loss.to(tl.float32) * inverse[:, None], (tile_count, means_each, WORD)), axis=1
        )
        always_read = (block == 0)[None, :] | (block[None, :] >= near[:, None])
        chosen = always_read | (loss > tolerance)
        word = tl.sum(tl.where(chosen, tl.full((1, WORD), 1, tl.int64) << wide[None, :], 0), axis=1)
        tl.store(bits_ptr + out * (pitch // WORD) + start // WORD, word, mask=there)
        listed = chosen & (block[None, :] < whole[:, None])
        place = count[:, None] + tl.cumsum(listed.to(tl.int32), axis=1) - 1
        to = list_ptr + out[:, None] * pitch + place
        tl.store(to, tl.broadcast_to(block[None, :], (tile_count, WORD)), mask=listed & there[:, None])
        count += tl.sum(listed.to(tl.int32), axis=1)
    tl.store(count_ptr + out, count, mask=there)


def choose_blocks(
    queries: Tensor,
    keys: Tensor,
    means: BlockMeans,
    scaling: float,
    settings: ReadSettings,
    softmax: Softmax,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `reading.choose_blocks` chooses, as bits, lists and counts, see `choose_kernel`."""
    batch, heads, new, dim = queries.shape
    kv_heads, size = keys.shape[1:3]
    tiles, pitch = triton.cdiv(new, QUERY_BLOCK), triton.cdiv(triton.cdiv(size, KEY_BLOCK), WORD) * WORD
    bits = torch.empty(batch, heads, tiles, pitch // WORD, dtype=torch.int64, device=keys.device)
    lists = torch.empty(batch, heads, tiles, pitch, dtype=torch.int32, device=keys.device)
    counts = torch.empty(batch, heads, tiles, dtype=torch.int32, device=keys.device)
    columns = max(16, next_power(dim))
    rows, parts = min(MOST_MEANS, MEAN_NUMBERS // columns), min(MOST_PARTS, PART_NUMBERS // columns)
    programs = triton.cdiv(tiles, rows // (QUERY_BLOCK // QUERY_PART))
    most = min(batch * heads, max(1, LOSSES // (programs * pitch * rows)))
    losses = torch.empty(most, programs, pitch, rows, dtype=torch.bfloat16, device=keys.device)
    for first in range(0, batch * heads, most):
        choose_kernel[(programs, min(most, batch * heads - first))](
            queries, keys, means.parts, losses, bits, lists, counts, *queries.stride()[:3],
            *keys.stride()[:3], *means.parts.stride()[:3], *scales_of(scaling, softmax), settings.tolerance,
            size - new, new, tiles, pitch, first,
            HEADS=kv_heads, GROUP=heads // kv_heads, D=dim, P=columns, ROWS=rows, PARTS=parts,
            QUERY_BLOCK=QUERY_BLOCK, KEY_BLOCK=KEY_BLOCK, KEY_PART=KEY_PART, QUERY_PART=QUERY_PART, NEAR=NEAR,
            WORD=WORD, STAGES=CHOOSE_STAGES, CAPPED=softmax.softcap > 0, num_warps=CHOOSE_WARPS,
        )  # fmt: skip
    return bits, lists, counts
