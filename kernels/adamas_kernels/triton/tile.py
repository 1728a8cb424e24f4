"""Products of sixteen tokens and eight queries on NVIDIA's tensor cores, directly from packed codes.

One warp multiplies a tile with `mma.m16n8k32` (PTX ISA, "Matrix fragments for mma.m16n8k32"). That
instruction sums over 32 coordinates in any order that both sides share, so each lane loads whole words of
codes and unpacks them in place: lane 4 g + t has words t, t + 4, ... of tokens g and g + 8 and the same
coordinates of query g, and gets the sums of both tokens with queries 2 t and 2 t + 1. No word is loaded twice
or moves between lanes.

Tensors here are int32 [LANES] in programs of one warp, with number i in lane i.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
SHARING = tl.constexpr(4)  # lanes that share a token
ROWS = tl.constexpr(2)  # tokens of a lane
TOKENS = tl.constexpr(16)  # of a tile
QUERIES = tl.constexpr(8)  # that a tile is multiplied by
WORDS_PER_ROUND = tl.constexpr(8)  # code words of a token per round of products


def _assembly(words: int, products: tuple[tuple[tuple[int, int], tuple[int, int]], ...]) -> tl.constexpr:
    """Assembly for one round of products. products: the (word, quad) of each product's two times sixteen
    coordinates. Operands: four sums, `words` code words each of the first and the second token, two query
    quads per product, and the sums so far.
    """
    sums = [f"${i}" for i in range(4)]
    codes = [[f"${4 + words * row + word}" for word in range(words)] for row in range(2)]
    quads = [f"${4 + 2 * words + i}" for i in range(2 * len(products))]
    before = [f"${4 + 2 * words + len(quads) + i}" for i in range(4)]
    lines = ["{", ".reg .b32 a0, a1, a2, a3, c0, c1, c2, c3;"]
    lines += [f"mov.b32 c{i}, {source};" for i, source in enumerate(before)]
    for number, halves in enumerate(products):
        for half, (word, quad) in enumerate(halves):
            for row in range(2):
                part = f"a{2 * half + row}"
                lines.append(f"shr.b32 {part}, {codes[row][word]}, {2 * quad};")
                lines.append(f"and.b32 {part}, {part}, 0x03030303;")
        lines.append(
            "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {c0, c1, c2, c3}, {a0, a1, a2, a3}, "
            f"{{{quads[2 * number]}, {quads[2 * number + 1]}}}, {{c0, c1, c2, c3}};"
        )
    lines += [f"mov.b32 {target}, c{i};" for i, target in enumerate(sums)]
    return tl.constexpr("\n".join([*lines, "}"]))


def _constraints(inputs: int) -> tl.constexpr:
    return tl.constexpr(",".join(["=r"] * 4 + ["r"] * inputs))


# A round takes eight words of each token, or all four of heads of 64.
EIGHT_WORDS = _assembly(2, tuple(((0, quad), (1, quad)) for quad in range(4)))
EIGHT_WORDS_OPERANDS = _constraints(2 * 2 + 2 * 4 + 4)
FOUR_WORDS = _assembly(1, tuple(((0, quad), (0, quad + 1)) for quad in (0, 2)))
FOUR_WORDS_OPERANDS = _constraints(2 * 1 + 2 * 2 + 4)


@triton.jit
def from_partner(x):
    """The number of the lane two before or after, which shares the same token."""
    return tl.inline_asm_elementwise(
        "shfl.sync.bfly.b32 $0, $1, 2, 0x1f, 0xffffffff;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def load_tile(codes, codes_w, first_at, second_at, lane, P: tl.constexpr):
    """Each lane's words of its two tokens, a tuple of P / 64 for the first, then P / 64 for the second. Lanes
    that share a token must pass the same position.
    """
    words = ()
    for row in tl.static_range(ROWS):
        at = (first_at, second_at)[row]
        for w in tl.static_range(P // 64):
            words += (tl.load(codes + (4 * w + lane % SHARING) * codes_w + at),)  # type: ignore[assignment]
    return words


@triton.jit
def load_tile_queries(query_words, lane, P: tl.constexpr):
    """Each lane's quads of its query, whose words begin at query_words [LANES]: a tuple of two per
    product.
    """
    own = lane % SHARING
    quads = ()
    if P == 64:
        for quad in tl.static_range(4):
            quads += (tl.load(query_words + 4 * own + quad),)  # type: ignore[assignment]
    else:
        for turn in tl.static_range(P // 128):
            for quad in tl.static_range(4):
                for half in tl.static_range(2):
                    at = 4 * (WORDS_PER_ROUND * turn + 4 * half + own) + quad
                    quads += (tl.load(query_words + at),)  # type: ignore[assignment]
    return quads


@triton.jit
def multiply_tile(words, quads, P: tl.constexpr):
    """Products of codes 0..3 and the integers of queries: the lane's first token with its even and its odd
    query, then its second token.
    """
    none = tl.zeros((LANES,), tl.int32)
    sums = (none, none, none, none)
    if P == 64:
        sums = tl.inline_asm_elementwise(
            FOUR_WORDS, FOUR_WORDS_OPERANDS,
            [words[0], words[1], quads[0], quads[1], quads[2], quads[3], sums[0], sums[1], sums[2], sums[3]],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        for turn in tl.static_range(P // 128):
            sums = tl.inline_asm_elementwise(
                EIGHT_WORDS, EIGHT_WORDS_OPERANDS,
                [
                    words[2 * turn], words[2 * turn + 1],
                    words[P // 64 + 2 * turn], words[P // 64 + 2 * turn + 1],
                    quads[8 * turn], quads[8 * turn + 1], quads[8 * turn + 2], quads[8 * turn + 3],
                    quads[8 * turn + 4], quads[8 * turn + 5], quads[8 * turn + 6], quads[8 * turn + 7],
                    sums[0], sums[1], sums[2], sums[3],
                ],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
    return sums
