"""Products on NVIDIA's tensor cores with `mma.m16n8k16`, whose operands are made in the lanes that hold them.

One instruction multiplies sixteen rows of a weight with eight rows of x (PTX ISA, "Matrix fragments for
mma.m16n8k16"). It sums over 16 numbers in any order that both sides share. Lane 4 g + t has numbers of rows g
and g + 8 of the weight and of row g of x, and gets the sums of rows g and g + 8 of the weight with rows 2 t
and 2 t + 1 of x. A register has two 16-bit numbers.

A code becomes such a number without a conversion. In bfloat16 a byte below 128 is the low mantissa of 2^7 or
2^11, which adds a constant (see `meaning`). In float16 it is the mantissa of a subnormal number, so all of
them are 2^24 times too small.

Tensors here have number i in thread i of a program.
"""

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
SHARING = tl.constexpr(4)  # lanes that share a row
TILE_ROWS = tl.constexpr(16)  # of the weight
TILE_FEW = tl.constexpr(8)  # rows of x
ROWS_OF_LANE = tl.constexpr(2)
STEPS = tl.constexpr(2)  # of 16 numbers in a chunk

_MMA = """mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32
{{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};"""
BRAIN_MMA, HALF_MMA = (tl.constexpr(_MMA.format(kind=kind)) for kind in ("bf16", "f16"))


@triton.constexpr_function
def head_of(brain, upper):
    """The upper byte of the number of a code, and of the UPPER four bits of one (only bfloat16)."""
    if not brain:
        return 0
    return 0x45 if upper else 0x43


@triton.constexpr_function
def meaning(brain, split):
    """What is added to codes: 2^7 in bfloat16, and 2^11 to their upper bits if these are SPLIT off."""
    if not brain:
        return 0
    return 128 + 2048 if split else 128


@triton.constexpr_function
def two_of(number, brain):
    """Two times the same whole number that multiplies x like a code, with at most 8 significant bits."""
    size = number if number > 0 else -number
    if brain:
        power = size.bit_length() - 1
        size = 127 + power << 7 | size << 7 >> power & 0x7F
    bits = size if number > 0 else size | 0x8000
    both = bits << 16 | bits
    return both - (1 << 32) if both >> 31 else both


@triton.constexpr_function
def unit_of(brain):
    """What a code of 1 must be multiplied by."""
    return 1.0 if brain else float(1 << 24)


@triton.jit
def pair_of(codes, head, STEP: tl.constexpr, FAST: tl.constexpr):
    """Bytes 2 STEP and 2 STEP + 1 of codes, each under the lowest byte of head."""
    if FAST:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, 0x4342;" if STEP else "prmt.b32 $0, $1, $2, 0x4140;",
            "=r,r,r", [codes, head], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    first, second = (codes >> (16 * STEP)) & 0xFF, (codes >> (16 * STEP + 8)) & 0xFF
    return first | (second << 16) | ((head | (head << 16)) << 8)


@triton.jit
def load_four(pointer, FAST: tl.constexpr):
    """Four int32 in a row, at multiples of 16 bytes."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ld.global.v4.b32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l", [pointer.to(tl.int64)],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip
    return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2), tl.load(pointer + 3)


@triton.jit
def _number(bits, BRAIN: tl.constexpr):
    """The lower 16 bits as float32."""
    if BRAIN:
        return (bits << 16).to(tl.float32, bitcast=True)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def multiply(
    first, second, later_first, later_second, x, later_x, sums,
    BRAIN: tl.constexpr, WARPS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """sums + products of two pairs of numbers, `first` and `later_first` of the lane's first row of the
    weight, `second` and `later_second` of its second row, with those of x. sums: of the first row with both
    of the lane's rows of x, then of the second.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            BRAIN_MMA if BRAIN else HALF_MMA, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            [first, second, later_first, later_second, x, later_x, sums[0], sums[1], sums[2], sums[3]],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip
    weight = tl.join(tl.join(first, later_first), tl.join(second, later_second))
    weight = tl.reshape(weight, (WARPS, TILE_FEW, 1, SHARING, 2, ROWS_OF_LANE))
    x = tl.reshape(tl.join(x, later_x), (WARPS, 1, TILE_FEW, SHARING, 2, 1))
    both = _number(weight, BRAIN) * _number(x, BRAIN)
    both += _number(weight >> 16, BRAIN) * _number(x >> 16, BRAIN)
    found = tl.sum(tl.sum(both, axis=4), axis=3)
    upper, lower = tl.split(tl.reshape(found, (WARPS * LANES, 2, ROWS_OF_LANE)))
    upper, lower = tl.split(upper), tl.split(lower)
    return sums[0] + upper[0], sums[1] + upper[1], sums[2] + lower[0], sums[3] + lower[1]
