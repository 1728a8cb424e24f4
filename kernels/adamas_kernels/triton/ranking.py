"""Ranks of tokens by their codes, one token per lane: byte products or distances, exact in integers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot4(codes, query, total, FAST: tl.constexpr):
    """total + sum of four products of a byte of codes (0..3) and a byte of query (-127..127), exact."""
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
def load_queries(query_words, rows, WORDS: tl.constexpr, HELD: tl.constexpr):
    """The words of encoded queries, a tuple of WORDS int32 [ROWS]; empty if they are not HELD."""
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
def rank_of(found, total, scale):
    """The reference's rank, from the product of codes 0..3 and a query whose integers sum to `total`; the
    float before the last product is exact.
    """
    return (2.0 * found.to(tl.float32) - 3.0 * total) * scale


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
    return rank_of(found, total[:, None], scale[None, :])
