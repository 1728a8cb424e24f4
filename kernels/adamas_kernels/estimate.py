"""One pass over the codes: a rank for every token, the softmax mass, and the few tokens above a threshold."""

from __future__ import annotations

import triton
import triton.language as tl

from adamas_kernels.coding import FACTS

LARGEST_EXPONENT = tl.constexpr(60.0)
FARTHEST_ANCHOR = tl.constexpr(
    30.0
)  # from the score of a mean key; a wrong prediction must not empty the mass


@triton.jit
def dot4(codes, query, total, FAST: tl.constexpr):
    """total + sum of four products of a byte of codes (0..3) with a byte of query (-127..127), exact."""
    if FAST:
        total = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;",
            "=r,r,r,r",
            [codes, query, total],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        for byte in tl.static_range(4):
            total += ((codes >> (8 * byte)) & 3) * ((query << (24 - 8 * byte)) >> 24)
    return total


@triton.jit
def count_bits(x, FAST: tl.constexpr):
    """Bits set in each int32."""
    if FAST:
        return tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF


@triton.jit
def distance(a, b, total, FAST: tl.constexpr):
    """total + Manhattan distance of sixteen 2-bit codes, from bit planes: l + 2h - 2 (h and l and a_h xor
    a_l).
    """
    differ = a ^ b
    low = differ & 0x55555555
    high = (differ >> 1) & 0x55555555
    both = high & low & ((a >> 1) ^ a)
    return total + count_bits(low, FAST) + 2 * (count_bits(high, FAST) - count_bits(both, FAST))


@triton.jit
def rank_tokens(
    codes, codes_w, scale, words, words_row, total, at, inside, rows,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Ranks float32 [ROWS, BLOCK] of the tokens at `at` for the queries `rows`; higher is nearer."""
    found = tl.zeros((ROWS, BLOCK), tl.int32)
    for w in tl.static_range(P // 16):
        word = tl.load(codes + w * codes_w + at, mask=inside, other=0)
        if MANHATTAN:
            query = tl.load(words + rows * words_row + w)
            a, b = tl.broadcast(word[None, :], query[:, None])
            found = distance(a, b, found, FAST)
        else:
            for i in tl.static_range(4):
                query = tl.load(words + rows * words_row + 4 * w + i)
                a, b = tl.broadcast(((word >> (2 * i)) & 0x03030303)[None, :], query[:, None])
                found = dot4(a, b, found, FAST)
    if MANHATTAN:
        return -found.to(tl.float32)
    dot = 2.0 * found.to(tl.float32) - 3.0 * total[:, None]
    return dot * tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def mass_anchor(unit, offset, threshold):
    """The score that estimated softmax masses are relative to: the threshold's, unless that is far from any
    score.
    """
    return offset + tl.minimum(tl.maximum(unit * threshold, -FARTHEST_ANCHOR), FARTHEST_ANCHOR)


@triton.jit
def mass_of(rank, unit, offset, anchor):
    """Estimated softmax weight of tokens, relative to the anchor; bounded, so that no threshold makes it
    overflow.
    """
    return tl.exp(tl.minimum(rank * unit + (offset - anchor), LARGEST_EXPONENT))


# With known alignment the loads would get a layout of their own, and each word of codes would pass through
# shared memory on its way to the layout of the stores (measured on an H100, 128K tokens: 131 us instead of
# 58).
@triton.jit(do_not_specialize=["codes_b", "codes_h", "codes_w", "scale_b", "scale_h"])
def estimate_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr,
    rank_ptr, position_ptr, count_ptr, mass_ptr,
    codes_b, codes_h, codes_w, scale_b, scale_h, sinks, recents,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr,
    ROOM: tl.constexpr, BLOCK: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Program (block of tokens, KV head of a batch, new token); one read of the codes serves a whole group.

    Writes tokens above each query's threshold to rank and position [B, H, N, ROOM] in any order, counts all
    of them, also those without room, and leaves the block's part of the softmax in mass [B, H, N, blocks].
    Tokens that are chosen anyway (sinks, recents) and tokens beyond the query's own take no part.
    """
    block, blocks, pair, new = tl.program_id(0), tl.num_programs(0), tl.program_id(1), tl.program_id(2)
    batch, head = (pair // HEADS).to(tl.int64), pair % HEADS
    group = tl.arange(0, ROWS)
    real = group < GROUP
    rows = (pair * GROUP + tl.where(real, group, 0)) * NEW + new
    unit = tl.load(facts_ptr + rows * FACTS)
    offset = tl.load(facts_ptr + rows * FACTS + 1)
    total = tl.load(facts_ptr + rows * FACTS + 2)
    threshold = tl.load(facts_ptr + rows * FACTS + 3)
    codes = codes_ptr + batch * codes_b + head * codes_h
    scale = scale_ptr + batch * scale_b + head * scale_h
    end = tl.load(length_ptr) + new + 1 - recents
    words_row = P // 16 if MANHATTAN else P // 4
    at = block * BLOCK + tl.arange(0, BLOCK)
    mass = tl.zeros((ROWS,), tl.float32)
    if block * BLOCK < end:
        inside = (at >= sinks) & (at < end)
        rank = rank_tokens(
            codes,
            codes_w,
            scale,
            words_ptr,
            words_row,
            total,
            at,
            inside,
            rows,
            ROWS,
            BLOCK,
            P,
            MANHATTAN,
            FAST,
        )
        if MASS:
            anchor = mass_anchor(unit, offset, threshold)
            weight = mass_of(rank, unit[:, None], offset[:, None], anchor[:, None])
            mass = tl.sum(tl.where(inside[None, :], weight, 0.0), axis=1)
        hit = inside[None, :] & (rank >= threshold[:, None]) & real[:, None]
        hits = hit.to(tl.int32)
        if tl.max(tl.max(hits, axis=1), axis=0) > 0:
            number = tl.sum(hits, axis=1)
            first = tl.atomic_add(count_ptr + rows, number, mask=real & (number > 0), sem="relaxed")
            slot = first[:, None] + tl.cumsum(hits, axis=1) - 1
            keep = hit & (slot < ROOM)
            place = rows[:, None].to(tl.int64) * ROOM + slot
            tl.store(rank_ptr + place, rank, mask=keep)
            tl.store(position_ptr + place, tl.broadcast(at[None, :], slot)[0], mask=keep)
    if MASS:
        tl.store(mass_ptr + rows.to(tl.int64) * blocks + block, mass, mask=real)
