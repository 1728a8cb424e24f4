"""The means of blocks of keys and values, and which key blocks each query block reads, on a GPU.

The choice is one launch. A program multiplies sampled queries by all means and spreads, and keeps every
block's share relative to the keys that are always read, as the total is only known at the end. Then it reads
the shares again, divides, and writes the chosen blocks as bits and as a list.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.reading import (
    DEVIATIONS,
    KEY_BLOCK,
    NEAR,
    QUERY_BLOCK,
    QUERY_STRIDE,
    BlockMeans,
    ReadSettings,
)
from adamas_kernels.softmax import Softmax
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense_parts import scaled, scales_of
from adamas_kernels.triton.launch import next_power

WORD = 64  # blocks whose bits are one word
# Highest score of a row that has seen no token: below every real score, and so far above LOWEST, scaled or
# not, that hidden tokens get no weight.
NONE_YET = tl.constexpr(-1e20)
LARGEST = tl.constexpr(50.0)  # largest exponent of a share, so that sums and products stay finite
# Per program: numbers of its queries, and of means of blocks at a time; and the most queries and means.
QUERY_NUMBERS, MEAN_NUMBERS = 16384, 4096
MOST_QUERIES, MOST_MEANS = 128, 64
CHOOSE_STAGES = 2  # with three, two programs would not fit a multiprocessor, and one not the smallest
CHOOSE_WARPS = 8
SHARES = 1 << 26  # kept at a time
LEAST_PROGRAMS = 128  # of a launch, however many shares they keep: about one for each multiprocessor


@triton.jit
def summarize_kernel(
    key_ptr, value_ptr, key_mean_ptr, value_mean_ptr, spread_ptr,
    key_b, key_h, key_n, value_b, value_h, value_n, key_mean_b, key_mean_h, key_mean_n,
    value_mean_b, value_mean_h, value_mean_n, spread_b, spread_h, spread_n, first,
    HEADS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):  # fmt: skip
    """Means of blocks from number `first` on; program (block, KV head of a batch)."""
    pair = tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    block = (first + tl.program_id(0)).to(tl.int64)
    token = block * KEY_BLOCK + tl.arange(0, KEY_BLOCK)
    dim, column = tl.arange(0, P), tl.arange(0, D_V_PAD)
    key = key_ptr + batch * key_b + head * key_h + token[:, None] * key_n + dim[None, :]
    k = tl.load(key, mask=(dim < D)[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(k, axis=0) / KEY_BLOCK
    key_mean = key_mean_ptr + batch * key_mean_b + head * key_mean_h + block * key_mean_n + dim
    tl.store(key_mean, mean.to(key_mean_ptr.dtype.element_ty), mask=dim < D)
    k -= mean[None, :]
    spread = spread_ptr + batch * spread_b + head * spread_h + block * spread_n + dim
    tl.store(spread, (tl.sum(k * k, axis=0) / KEY_BLOCK).to(spread_ptr.dtype.element_ty), mask=dim < D)
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
        keys, values, means.keys, means.values, means.spreads, *keys.stride()[:3], *values.stride()[:3],
        *means.keys.stride()[:3], *means.values.stride()[:3], *means.spreads.stride()[:3], first,
        HEADS=heads, D=dim, P=next_power(dim), D_V=dim_v, D_V_PAD=next_power(dim_v), KEY_BLOCK=KEY_BLOCK,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def choose_kernel(
    query_ptr, key_ptr, mean_ptr, spread_ptr, share_ptr, bits_ptr, list_ptr, count_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, mean_b, mean_h, mean_n,
    spread_b, spread_h, spread_n, scale, cap, tolerance, past, new, tiles, pitch, first_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, DEVIATIONS: tl.constexpr,
    QUERY_STRIDE: tl.constexpr, NEAR: tl.constexpr, WORD: tl.constexpr, STAGES: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Choose blocks for ROWS sampled queries of one head; program (those queries, last first; query head of a
    batch, from `first_head` on).

    Writes, for `tiles` query blocks, bits: int64 [B, H, tiles, pitch / WORD], 1 for blocks that are not
    replaced by their mean; list: int32 [B, H, tiles, pitch], the chosen blocks entirely before the tile; and
    count: int32 [B, H, tiles], their number. share: bfloat16 [programs, pitch, ROWS], scratch memory.
    """
    rows_each: tl.constexpr = QUERY_BLOCK // QUERY_STRIDE  # sampled queries of a block
    tile_count: tl.constexpr = ROWS // rows_each
    line = first_head + tl.program_id(1)
    batch, head = (line // (HEADS * GROUP)).to(tl.int64), (line % (HEADS * GROUP)).to(tl.int64)
    part_of = tl.num_programs(0) - 1 - tl.program_id(0)
    begin = part_of * tile_count
    sample, dim = (begin * rows_each + tl.arange(0, ROWS)) * QUERY_STRIDE, tl.arange(0, P)
    query = query_ptr + batch * query_b + head * query_h + dim[None, :]
    inside = (sample < new)[:, None] & (dim < D)[None, :]
    q = tl.load(query + sample.to(tl.int64)[:, None] * query_n, mask=inside, other=0.0)
    root: tl.constexpr = P**0.5
    small = q.to(tl.float32) / root  # so that the squares fit float16
    squares = (small * small).to(q.dtype)
    near = tl.maximum((past + sample // QUERY_BLOCK * QUERY_BLOCK) // KEY_BLOCK - NEAR, 1)
    own = past + tl.minimum(sample, new - 1)
    factor = 1.0 if CAPPED else scale
    keys = key_ptr + batch * key_b + head // GROUP * key_h
    at = tl.arange(0, KEY_BLOCK)
    highest = tl.full((ROWS,), NONE_YET, tl.float32)
    always = tl.zeros((ROWS,), tl.float32)
    start_near = tl.maximum((past + begin * QUERY_BLOCK) // KEY_BLOCK - NEAR, 1)
    last = tl.minimum(past + (begin + tile_count) * QUERY_BLOCK, past + new)
    for step in tl.range(start_near - 1, tl.cdiv(last, KEY_BLOCK), num_stages=2):
        block = tl.where(step < start_near, 0, step)  # the first block, then the near ones
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
    total = tl.zeros((ROWS, BLOCKS), tl.float32)  # of blocks, relative to the keys always read
    means = mean_ptr + batch * mean_b + head // GROUP * mean_h + dim[:, None]
    spreads = spread_ptr + batch * spread_b + head // GROUP * spread_h + dim[:, None]
    row, one = tl.arange(0, ROWS), tl.arange(0, BLOCKS)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    shares = share_ptr + program.to(tl.int64) * pitch * ROWS
    behind = tl.minimum(begin + tile_count, tiles) - 1
    until = tl.maximum((past + behind * QUERY_BLOCK) // KEY_BLOCK - NEAR, 1)
    for start in tl.range(0, until, BLOCKS, num_stages=STAGES):
        block = start + one
        there = (block < until)[None, :] & (dim < D)[:, None]
        mean = tl.load(means + block.to(tl.int64)[None, :] * mean_n, mask=there, other=0.0)
        spread = tl.load(spreads + block.to(tl.int64)[None, :] * spread_n, mask=there, other=0.0)
        deviation = root * tl.sqrt(tl.maximum(tl.dot(squares, spread), 0.0))
        score = tl.dot(q, mean) + DEVIATIONS * deviation
        if CAPPED:
            score = scaled(score, scale, cap, CAPPED)
        share = tl.exp2(tl.minimum(score * factor - usual[:, None], LARGEST))
        hidden = (block == 0)[None, :] | (block[None, :] >= near[:, None])
        total += tl.where(hidden, 0.0, share)
        tl.store(
            shares + block.to(tl.int64)[None, :] * ROWS + row[:, None], share.to(tl.bfloat16),
            mask=(block < until)[None, :],
        )  # fmt: skip
    tl.debug_barrier()
    inverse = 1 / (1 + tl.sum(total, axis=1))
    tile = begin + tl.arange(0, tile_count)
    position = past + tile * QUERY_BLOCK
    near, whole = tl.maximum(position // KEY_BLOCK - NEAR, 1), position // KEY_BLOCK
    there = tile < tiles
    out = (batch * (HEADS * GROUP) + head) * tiles + tile
    count = tl.zeros((tile_count,), tl.int32)
    wide = tl.arange(0, WORD)
    for start in tl.range(0, pitch, WORD, num_stages=1):
        block = start + wide
        share = tl.load(
            shares + block.to(tl.int64)[None, :] * ROWS + row[:, None], mask=(block < until)[None, :],
            other=0.0,
        )  # fmt: skip
        share = tl.max(
            tl.reshape(share.to(tl.float32) * inverse[:, None], (tile_count, rows_each, WORD)), axis=1
        )
        always_read = (block == 0)[None, :] | (block[None, :] >= near[:, None])
        chosen = always_read | (share > tolerance)
        word = tl.sum(tl.where(chosen, tl.full((1, WORD), 1, tl.int64) << wide[None, :], 0), axis=1)
        tl.store(bits_ptr + out * (pitch // WORD) + start // WORD, word, mask=there)
        listed = chosen & (block[None, :] < whole[:, None])
        place = count[:, None] + tl.cumsum(listed.to(tl.int32), axis=1) - 1
        to = list_ptr + out[:, None] * pitch + place
        tl.store(to, tl.broadcast_to(block[None, :], (tile_count, WORD)), mask=listed & there[:, None])
        count += tl.sum(listed.to(tl.int32), axis=1)
    tl.store(count_ptr + out, count, mask=there)


def heads_at_once(heads: int, programs: int, shares: int) -> int:
    """How many of all heads a launch chooses for, each with this many programs and shares to keep."""
    return min(heads, max(triton.cdiv(LEAST_PROGRAMS, programs), SHARES // shares))


def choose_blocks(
    queries: Tensor,
    keys: Tensor,
    means: BlockMeans,
    scaling: float,
    settings: ReadSettings,
    softmax: Softmax,
) -> tuple[Tensor, Tensor, Tensor]:
    """The choice of `reading.choose_blocks`, as bits, lists and counts, see `choose_kernel`."""
    batch, heads, new, dim = queries.shape
    kv_heads, size = keys.shape[1:3]
    tiles, pitch = triton.cdiv(new, QUERY_BLOCK), triton.cdiv(triton.cdiv(size, KEY_BLOCK), WORD) * WORD
    bits = torch.empty(batch, heads, tiles, pitch // WORD, dtype=torch.int64, device=keys.device)
    lists = torch.empty(batch, heads, tiles, pitch, dtype=torch.int32, device=keys.device)
    counts = torch.empty(batch, heads, tiles, dtype=torch.int32, device=keys.device)
    columns = max(16, next_power(dim))
    rows, blocks = min(MOST_QUERIES, QUERY_NUMBERS // columns), min(MOST_MEANS, MEAN_NUMBERS // columns)
    programs = triton.cdiv(tiles, rows // (QUERY_BLOCK // QUERY_STRIDE))
    most = heads_at_once(batch * heads, programs, programs * pitch * rows)
    shares = torch.empty(most, programs, pitch, rows, dtype=torch.bfloat16, device=keys.device)
    for first in range(0, batch * heads, most):
        choose_kernel[(programs, min(most, batch * heads - first))](
            queries, keys, means.keys, means.spreads, shares, bits, lists, counts, *queries.stride()[:3],
            *keys.stride()[:3], *means.keys.stride()[:3], *means.spreads.stride()[:3],
            *scales_of(scaling, softmax), settings.tolerance,
            size - new, new, tiles, pitch, first,
            HEADS=kv_heads, GROUP=heads // kv_heads, D=dim, P=columns, ROWS=rows, BLOCKS=blocks,
            QUERY_BLOCK=QUERY_BLOCK, KEY_BLOCK=KEY_BLOCK, DEVIATIONS=DEVIATIONS,
            QUERY_STRIDE=QUERY_STRIDE, NEAR=NEAR,
            WORD=WORD, STAGES=CHOOSE_STAGES, CAPPED=softmax.softcap > 0, num_warps=CHOOSE_WARPS,
        )  # fmt: skip
    return bits, lists, counts
