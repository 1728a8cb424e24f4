"""One pass over the codes: a rank for every token, the softmax mass, and the few tokens above a threshold."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.coding import COUNTER_STRIDE, FACTS

LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST_EXPONENT = tl.constexpr(86.0)  # of two
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
def load_words(codes, codes_w, at, P: tl.constexpr):
    """The code words of the tokens at `at`, a tuple of P / 16 int32 like `at`."""
    words = ()
    for w in tl.static_range(P // 16):
        words += (tl.load(codes + w * codes_w + at),)  # type: ignore[assignment]
    return words


@triton.jit
def within(at, low, end):
    """low <= at < end, in one comparison."""
    return (at - low).to(tl.uint32) < tl.maximum(end - low, 0).to(tl.uint32)


@triton.jit
def load_queries(query_words, rows, WORDS: tl.constexpr, HELD: tl.constexpr):
    """The words of encoded queries, a tuple of WORDS int32 [ROWS]; empty where they are not HELD."""
    words = ()
    if HELD:
        for w in tl.static_range(WORDS):
            words += (tl.load(query_words + rows * WORDS + w),)  # type: ignore[assignment]
    return words


@triton.jit
def query_word(queries, query_words, rows, w: tl.constexpr, WORDS: tl.constexpr, HELD: tl.constexpr):
    """Word w of the encoded queries, int32 [ROWS], from registers or from memory."""
    if HELD:
        return queries[w]
    return tl.load(query_words + rows * WORDS + w)


@triton.jit
def rank_tokens(
    words, scale, queries, query_words, rows, total,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, P: tl.constexpr, MANHATTAN: tl.constexpr, FAST: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """Ranks float32 [ROWS, BLOCK] of tokens, given by `load_words` and their scales, for the queries `rows`;
    higher is nearer.
    """
    found = tl.zeros((ROWS, BLOCK), tl.int32)
    for w in tl.static_range(P // 16):
        if MANHATTAN:
            query = query_word(queries, query_words, rows, w, P // 16, HELD)
            a, b = tl.broadcast(words[w][None, :], query[:, None])
            found = distance(a, b, found, FAST)
        else:
            for i in tl.static_range(4):
                query = query_word(queries, query_words, rows, 4 * w + i, P // 4, HELD)
                quad = (words[w] >> (2 * i)) & 0x03030303
                a, b = tl.broadcast(quad[None, :], query[:, None])
                found = dot4(a, b, found, FAST)
    if MANHATTAN:
        return -found.to(tl.float32)
    return (2.0 * found.to(tl.float32) - 3.0 * total[:, None]) * scale[None, :]


@triton.jit
def mass_anchor(unit, offset, threshold):
    """The score that estimated softmax masses are relative to: the threshold's, unless that is far from any
    score.
    """
    return offset + tl.minimum(tl.maximum(unit * threshold, -FARTHEST_ANCHOR), FARTHEST_ANCHOR)


@triton.jit
def mass_line(unit, offset, anchor):
    """Slope and start of the estimated score over ranks, relative to an anchor, in powers of two."""
    return unit * LOG2_E, (offset - anchor) * LOG2_E


@triton.jit
def mass_of(rank, slope, start):
    """Estimated softmax mass of ranks; bounded, so that a sum of many stays finite."""
    return tl.exp2(tl.minimum(rank * slope + start, LARGEST_EXPONENT))


# With known alignment the loads would get a layout of their own, and each word of codes would pass through
# shared memory on its way to the layout of the stores (measured on an H100, 128K tokens: 131 us instead of
# 58).
@triton.jit(do_not_specialize=["codes_b", "codes_h", "codes_w", "scale_b", "scale_h"])
def estimate_kernel(
    codes_ptr, scale_ptr, length_ptr, words_ptr, facts_ptr,
    rank_ptr, position_ptr, count_ptr, mass_ptr,
    codes_b, codes_h, codes_w, scale_b, scale_h,
    capacity, sinks, recents,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr,
    ROOM: tl.constexpr, BLOCK: tl.constexpr, MANHATTAN: tl.constexpr, MASS: tl.constexpr, FAST: tl.constexpr,
    CHAINED: tl.constexpr, EARLY: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Program (one of those that share a KV head's tokens, KV head of a batch, new token).

    A program goes through blocks of tokens with its whole group's queries, so that one read of the codes
    serves all of them.

    Writes tokens above each query's threshold to rank and position [B, H, N, ROOM] in any order, counts all
    of them, also those without room, and leaves its part of the softmax in mass [B, H, N, programs].
    Tokens that are chosen anyway (sinks, recents) and tokens beyond the query's own take no part.
    CHAINED: started before the launch before it ended. EARLY: the codes it reads are older than that launch.
    HELD: the queries stay in registers meanwhile.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    pair, new = tl.program_id(1), tl.program_id(2)
    batch, head = (pair // HEADS).to(tl.int64), pair % HEADS
    group = tl.arange(0, ROWS)
    real = group < GROUP
    rows = (pair * GROUP + tl.where(real, group, 0)) * NEW + new
    codes = codes_ptr + batch * codes_b + head * codes_h
    scale = scale_ptr + batch * scale_b + head * scale_h
    end = tl.load(length_ptr) + new + 1 - recents
    if CHAINED:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    # The last block is moved back to lie within the buffers, so that no load needs a mask.
    here = tl.arange(0, BLOCK)
    base = tl.minimum(program * BLOCK, capacity - BLOCK)
    words = load_words(codes + base, codes_w, here, P)
    scales = tl.load(scale + base + here)
    if EARLY:
        gdc_wait()
    queries = load_queries(words_ptr, rows, P // 16 if MANHATTAN else P // 4, HELD)
    unit = tl.load(facts_ptr + rows * FACTS)
    offset = tl.load(facts_ptr + rows * FACTS + 1)
    total = tl.load(facts_ptr + rows * FACTS + 2)
    threshold = tl.load(facts_ptr + rows * FACTS + 3)
    slope, level = mass_line(unit, offset, mass_anchor(unit, offset, threshold))
    mass = tl.zeros((ROWS,), tl.float32)
    for start in range(program * BLOCK, end, programs * BLOCK):
        at = tl.minimum(start, capacity - BLOCK) + here
        base = tl.minimum(start + programs * BLOCK, capacity - BLOCK)
        next_words = load_words(codes + base, codes_w, here, P)
        next_scales = tl.load(scale + base + here)
        inside = within(at, tl.maximum(start, sinks), end)
        rank = rank_tokens(
            words, scales.to(tl.float32), queries, words_ptr, rows, total,
            ROWS, BLOCK, P, MANHATTAN, FAST, HELD,
        )  # fmt: skip
        if MASS:
            weight = mass_of(rank, slope[:, None], level[:, None])
            mass += tl.sum(tl.where(inside[None, :], weight, 0.0), axis=1)
        hit = inside[None, :] & (rank >= threshold[:, None]) & real[:, None]
        if tl.max(tl.max(hit.to(tl.int32), axis=0), axis=0) > 0:
            one = tl.full((ROWS, BLOCK), 1, tl.int32)
            counter = count_ptr + tl.broadcast(rows[:, None] * COUNTER_STRIDE, one)[0]
            slot = tl.atomic_add(counter, one, mask=hit, sem="relaxed")
            keep = hit & (slot < ROOM)
            place = rows[:, None].to(tl.int64) * ROOM + slot
            tl.store(rank_ptr + place, rank, mask=keep)
            tl.store(position_ptr + place, tl.broadcast(at[None, :], slot)[0], mask=keep)
        words, scales = next_words, next_scales
    if MASS:
        tl.store(mass_ptr + rows.to(tl.int64) * programs + program, mass, mask=real)
