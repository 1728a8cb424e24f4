"""Attention of a chunk of new tokens to chosen key blocks, and to the means of all others.

A tile of queries has a list of its blocks, so work and memory traffic are proportional to their number. It
also reads the means of all blocks before it, 1/64 of the keys, for the skipped blocks. torch's flex_attention
does not support means, and takes longer for the chosen blocks alone (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.contract import check_unbounded
from adamas_kernels.reading import KEY_BLOCK, QUERY_BLOCK, BlockMeans, ReadSettings, blocks_of
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense_parts import LN_2, scaled, scales_of
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.reading import NONE_YET, WORD, choose_blocks

HOPPER = 9  # NVIDIA's generation with a unit that copies tiles from aligned addresses
ALIGNMENT = 16  # bytes
STAGES = 2


@dataclass(frozen=True)
class Tile:
    """A program's query rows, keys at a time, warps and launch options."""

    rows: int
    keys: int
    warps: int
    options: Mapping[str, int] = field(default_factory=dict)


# The fastest, by padded head_dim. For 128, the limit on registers lets two programs share a multiprocessor,
# and one multiplies while the other computes its softmax; this gains more than the few spilled registers
# cost.
HOPPER_TILES = {64: Tile(128, 64, 4), 128: Tile(128, 64, 8, {"maxnreg": 128}), 256: Tile(128, 64, 8)}
QUERY_NUMBERS, KEY_NUMBERS = 16384, 8192  # of a tile on other GPUs: fits the smallest
ORDER_BLOCK = 64  # tiles that are ordered at a time


@triton.jit
def load_rows(rows, stride, start, end, column, D: tl.constexpr, BLOCK: tl.constexpr, COPIED: tl.constexpr):
    """Rows from `start` on of a matrix [end, D], zeros after it: [BLOCK, columns]."""
    if COPIED:
        found = rows.load([start, 0])
    else:
        at = start + tl.arange(0, BLOCK)
        inside = (at < end)[:, None] & (column < D)[None, :]
        found = tl.load(rows + at.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0)
    return found


@triton.jit
def scores_of(q, k, scale, cap, CAPPED: tl.constexpr):
    """Scores of queries [ROWS, P] with keys [BLOCK, P]: as exponents of two if CAPPED, see `scaled`, else
    unscaled.
    """
    score = tl.dot(q, tl.trans(k))
    if CAPPED:
        score = scaled(score, scale, cap, CAPPED)
    return score


@triton.jit
def absorb(highest, weight, weighted, score, v, factor, extra):
    """Add scores [ROWS, BLOCK] of values v [BLOCK, D_V] to the highest score, weight and weighted values
    [ROWS, D_V] of a softmax; a score times `factor` plus `extra` is an exponent of two.
    """
    higher = tl.maximum(highest, tl.max(score, axis=1) * factor + extra)
    p = tl.exp2(score * factor - (higher - extra)[:, None])
    fade = tl.exp2(highest - higher)
    weight = weight * fade + tl.sum(p, axis=1)
    return higher, weight, tl.dot(p.to(v.dtype), v, weighted * fade[:, None])


@triton.jit
def sparse_prefill_kernel(
    query_ptr, key_ptr, value_ptr, key_mean_ptr, value_mean_ptr, bits_ptr, list_ptr, count_ptr, order_ptr,
    out_ptr, lse_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    key_mean_b, key_mean_h, key_mean_n, value_mean_b, value_mean_h, value_mean_n, out_b, out_h, out_n,
    scale, cap, past, new, tiles, pitch,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr,
    D_V_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, WORD: tl.constexpr, STAGES: tl.constexpr, CAPPED: tl.constexpr,
    COPIED: tl.constexpr,
):  # fmt: skip
    """Attention from ROWS new tokens of one query head; program (those tokens, by tile in the order of
    `heaviest_first`). bits, list, count, pitch: see `choose_kernel`; scale, cap: see `scaled`. COPIED: rows
    are copied by the GPU's tile copy unit.
    """
    programs_each: tl.constexpr = QUERY_BLOCK // ROWS
    line = tl.load(order_ptr + tl.program_id(0) // programs_each).to(tl.int64)
    tile = (line % tiles).to(tl.int32)
    begin = tile * QUERY_BLOCK + tl.program_id(0) % programs_each * ROWS
    batch, head = line // tiles // (HEADS * GROUP), line // tiles % (HEADS * GROUP)
    kv_head = head // GROUP
    row, dim, column = begin + tl.arange(0, ROWS), tl.arange(0, P), tl.arange(0, D_V_PAD)
    at = tl.arange(0, BLOCK)
    real, own = row < new, past + row
    query = query_ptr + batch * query_b + head * query_h + row.to(tl.int64)[:, None] * query_n
    q = tl.load(query + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    whole = (past + tile * QUERY_BLOCK) // KEY_BLOCK  # blocks before the tile
    end = past + tl.minimum(begin + ROWS, new)
    keys, values = key_ptr + batch * key_b + kv_head * key_h, value_ptr + batch * value_b + kv_head * value_h
    key_means = key_mean_ptr + batch * key_mean_b + kv_head * key_mean_h
    value_means = value_mean_ptr + batch * value_mean_b + kv_head * value_mean_h
    if COPIED:
        keys = tl.make_tensor_descriptor(keys, [end, D], [key_n, 1], [BLOCK, P])
        values = tl.make_tensor_descriptor(values, [end, D_V], [value_n, 1], [BLOCK, D_V_PAD])
        some = tl.maximum(whole, 1)
        key_means = tl.make_tensor_descriptor(key_means, [some, D], [key_mean_n, 1], [BLOCK, P])
        value_means = tl.make_tensor_descriptor(value_means, [some, D_V], [value_mean_n, 1], [BLOCK, D_V_PAD])
    bits, listed = bits_ptr + line * (pitch // WORD), list_ptr + line * pitch
    count = tl.load(count_ptr + line)
    factor = 1.0 if CAPPED else scale
    highest = tl.full((ROWS,), NONE_YET, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, D_V_PAD), tl.float32)
    turns: tl.constexpr = KEY_BLOCK // BLOCK
    block = tl.load(listed)
    for step in tl.range(0, count * turns, num_stages=STAGES):
        start = block * KEY_BLOCK + step % turns * BLOCK
        block = tl.load(listed + (step + 1) // turns, mask=step + 1 < count * turns, other=0)
        k = load_rows(keys, key_n, start, end, dim, D, BLOCK, COPIED)
        v = load_rows(values, value_n, start, end, column, D_V, BLOCK, COPIED)
        score = scores_of(q, k, scale, cap, CAPPED)
        highest, weight, weighted = absorb(highest, weight, weighted, score, v, factor, 0.0)
    for start in tl.range(whole * KEY_BLOCK, end, BLOCK, num_stages=STAGES):
        k = load_rows(keys, key_n, start, end, dim, D, BLOCK, COPIED)
        v = load_rows(values, value_n, start, end, column, D_V, BLOCK, COPIED)
        score = scores_of(q, k, scale, cap, CAPPED)
        score = tl.where((start + at)[None, :] <= own[:, None], score, LOWEST)
        highest, weight, weighted = absorb(highest, weight, weighted, score, v, factor, 0.0)
    word = tl.load(bits)
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        k = load_rows(key_means, key_mean_n, start, whole, dim, D, BLOCK, COPIED)
        v = load_rows(value_means, value_mean_n, start, whole, column, D_V, BLOCK, COPIED)
        left = (word >> (start % WORD + at).to(tl.int64)) & 1 == 0
        word = tl.load(bits + (start + BLOCK) // WORD, mask=start + BLOCK < whole, other=0)
        score = scores_of(q, k, scale, cap, CAPPED)
        score = tl.where(left[None, :], score, LOWEST)
        highest, weight, weighted = absorb(highest, weight, weighted, score, v, factor, math.log2(KEY_BLOCK))
    out = out_ptr + batch * out_b + head * out_h + row.to(tl.int64)[:, None] * out_n + column[None, :]
    result = (weighted / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out, result, mask=real[:, None] & (column < D_V)[None, :])
    tl.store(
        lse_ptr + (batch * (HEADS * GROUP) + head) * new + row, highest * LN_2 + tl.log(weight), mask=real
    )


def attend_to_blocks(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    means: BlockMeans,
    chosen: tuple[Tensor, Tensor, Tensor],
    scaling: float,
    softmax: Softmax = PLAIN,
    hopper: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest N tokens, queries [B, H, N, D], over the chosen blocks, see
    `choose_kernel`, of keys and values [B, K, S, D], and over the means of the others.

    hopper: whether to launch as on a GPU of that generation; None asks the device. Returns output and
    log-sum-exp like `Backend.prefill`, without learned sinks.
    """
    batch, heads, new, dim = queries.shape
    kv_heads, dim_v = keys.shape[1], values.shape[3]
    size, dim_v_pad = max(16, next_power(dim)), max(16, next_power(dim_v))
    hopper = on_hopper(queries.device) if hopper is None else hopper
    tile = tile_of(max(size, dim_v_pad), hopper)
    out = queries.new_empty(batch, new, heads, dim_v).transpose(1, 2)
    lse = torch.empty(batch, heads, new, dtype=torch.float32, device=queries.device)
    bits, lists, counts = chosen
    order = heaviest_first(counts)
    sources = keys, values, means.keys, means.values
    copied = hopper and aligned(*sources)

    def launch() -> None:
        if copied:
            triton.set_allocator(_workspace)
        sparse_prefill_kernel[(counts.numel() * (QUERY_BLOCK // tile.rows),)](
            queries, *sources, bits, lists, counts, order, out, lse, *queries.stride()[:3],
            *(stride for source in sources for stride in source.stride()[:3]), *out.stride()[:3],
            *scales_of(scaling, softmax), keys.shape[2] - new, new, counts.shape[2], lists.shape[3],
            HEADS=kv_heads, GROUP=heads // kv_heads, D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad,
            ROWS=tile.rows, BLOCK=tile.keys, KEY_BLOCK=KEY_BLOCK, QUERY_BLOCK=QUERY_BLOCK, WORD=WORD,
            STAGES=STAGES, CAPPED=softmax.softcap > 0, COPIED=copied, num_warps=tile.warps, **tile.options,
        )  # fmt: skip

    copy_context().run(launch)  # the allocator is set only for this launch
    return out, lse


@triton.jit
def level_of(count):
    """The level of a number of blocks; one level spans a factor of the square root of two."""
    return (2 * tl.log2((count + 1).to(tl.float32))).to(tl.int32)


@triton.jit
def order_kernel(count_ptr, order_ptr, lines, BLOCK: tl.constexpr):
    """order: int32 [lines], indices into `count` by falling level; program (indices)."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    level = level_of(tl.load(count_ptr + place, mask=place < lines, other=0))
    rank = tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, lines, BLOCK):
        other = start + tl.arange(0, BLOCK)
        there = other < lines
        levels = level_of(tl.load(count_ptr + other, mask=there, other=0))
        sooner = (levels[None, :] == level[:, None]) & (other[None, :] < place[:, None])
        rank += tl.sum((there[None, :] & (sooner | (levels[None, :] > level[:, None]))).to(tl.int32), axis=1)
    tl.store(order_ptr + rank, place, mask=place < lines)


def heaviest_first(counts: Tensor) -> Tensor:
    """The order in which tiles attend, from the counts [B, H, R] of their blocks: int32 [B H R], indices into
    `counts`.

    Tiles with the most blocks come first, so that no long tile starts when others end. Tiles with similar
    counts keep the order of their heads, because the heads of a group share what they read.
    """
    order = torch.empty(counts.numel(), dtype=torch.int32, device=counts.device)
    order_kernel[(triton.cdiv(counts.numel(), ORDER_BLOCK),)](
        counts, order, counts.numel(), BLOCK=ORDER_BLOCK, num_warps=4
    )
    return order


def _workspace(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


def tile_of(size: int, hopper: bool) -> Tile:
    """The tile for heads of this padded dimension."""
    small = Tile(min(QUERY_BLOCK, QUERY_NUMBERS // size), min(KEY_BLOCK, KEY_NUMBERS // size), 8)
    return HOPPER_TILES.get(size, small) if hopper else small


def aligned(*sources: Tensor) -> bool:
    """Whether every row of these tensors is aligned for tile copies."""
    steps = (step * x.element_size() for x in sources for step in x.stride()[:3])
    return all(step % ALIGNMENT == 0 for step in (*steps, *(x.data_ptr() for x in sources)))


def on_hopper(device: torch.device) -> bool:
    """Whether a device is an NVIDIA GPU of that generation."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device)[0] == HOPPER


def prefill_sparsely(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    means: BlockMeans,
    scaling: float,
    settings: ReadSettings,
    softmax: Softmax = PLAIN,
    computed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `Backend.prefill_sparsely`."""
    check_unbounded(softmax)
    queries, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, keys, values))
    chosen = choose_blocks(queries, keys, means, scaling, settings, softmax)
    if computed is not None:
        count_blocks(chosen[2], queries.shape[2], keys.shape[2], computed)
    return softmax.with_sinks(*attend_to_blocks(queries, keys, values, means, chosen, scaling, softmax))


def count_blocks(counts: Tensor, new: int, size: int, computed: Tensor) -> None:
    """`reading.count_blocks` from counts int32 [B, H, R] of chosen blocks before the tiles."""
    past, lines = size - new, counts.shape[0] * counts.shape[1]
    starts = range(0, new, QUERY_BLOCK)
    reached = sum(blocks_of(past + min(start + QUERY_BLOCK, new)) for start in starts)
    own = reached - sum((past + start) // KEY_BLOCK for start in starts)
    computed[0] += counts.sum() + own * lines
    computed[1] += reached * lines
