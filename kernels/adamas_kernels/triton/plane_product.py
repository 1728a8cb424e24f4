"""One row times a weight in planes, at the speed at which its bits can be read.

A thread holds chunks of one place in several rows of the weight, and that place of x, so that x is read and
prepared once for all of them.

x of 16 bits is rounded to integers of 16 bits, in units of the largest number of its chunk: an error below
that of the largest one's own rounding to bfloat16. Products with the codes and their sums are then exact, and
one instruction takes two. Otherwise, and where codes mean what a table says, all is computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.codes import codes_of, constants, meaning_of, planes, scale_of, turned
from adamas_kernels.triton.launch import chains, has_ptx
from adamas_kernels.triton.planes import PlaneWeight

LANES = 32  # of a warp: chunks of a row that it holds at a time, one a lane
ROWS = 2  # of a program
MOST_WARPS = 4
BUSY = 2000  # warps that keep the memory of the largest GPUs busy
WASTE = 0.4  # of the lanes, beyond which fewer warps share a row


@triton.jit
def pair_of_x(x_ptr, chunk, word, there, PAIR: tl.constexpr, WHOLE: tl.constexpr):
    """The numbers of x that pair PAIR of the codes of each word is for, [1, G, 4], as float32.

    WHOLE: x_ptr is of int32, each two numbers of bfloat16.
    """
    if WHOLE:
        at = chunk * 16 + turned(chunk, PAIR) * 4 + word
        both = tl.load(x_ptr + at, mask=there, other=0)
        first = (both << 16).to(tl.float32, bitcast=True)
        return first, (both & -65536).to(tl.float32, bitcast=True)
    at = chunk * 32 + turned(chunk, PAIR) * 8 + word * 2
    first = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    return first, tl.load(x_ptr + at + 1, mask=there, other=0.0).to(tl.float32)


@triton.jit
def larger(first, second):
    """The larger magnitude of two."""
    return tl.maximum(tl.abs(first), tl.abs(second))


@triton.jit
def dot_two(pairs, codes, total, UPPER: tl.constexpr, FAST: tl.constexpr):
    """total + two integers of 16 bits, pairs, times the lower or the upper two bytes of codes.

    FAST: by one instruction (dp2a) of NVIDIA's GPUs.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            "dp2a.hi.s32.u32 $0, $1, $2, $3;" if UPPER else "dp2a.lo.s32.u32 $0, $1, $2, $3;",
            "=r,r,r,r", [pairs, codes, total], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    bytes = (codes >> 16) if UPPER else codes
    return total + ((pairs << 16) >> 16) * (bytes & 0xFF) + (pairs >> 16) * ((bytes >> 8) & 0xFF)


@triton.jit
def in_sixteen_bits(first, second, factor):
    """Two numbers, times a factor that leaves them below 2 ^ 15, rounded to the halves of an int32."""
    # 1.5 * 2 ^ 23 leaves a number's integer part at the end of the mantissa.
    lower = (first * factor + 12582912.0).to(tl.int32, bitcast=True)
    upper = (second * factor + 12582912.0).to(tl.int32, bitcast=True)
    return (lower & 0xFFFF) | (upper << 16)


@triton.jit(do_not_specialize=["step"])
def plane_product_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, step, bias_ptr, out_ptr, rows,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr, INTEGERS: tl.constexpr, FAST: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows of the weight): out[n] = weight[n] . x + bias[n].

    GATED: the weight is two, one behind the other, out[n] = silu(first[n] . x) * (second[n] . x) for rows / 2
    outputs, and ROWS is of both. INTEGERS: x is rounded to 16 bits, relative to the largest of each chunk.
    """
    parts: tl.constexpr = HALVES * 2 if MINIMUM else HALVES
    half: tl.constexpr = ROWS // 2
    here = tl.arange(0, ROWS)
    if GATED:
        output = tl.program_id(0) * half + here % half
        n = tl.minimum(output, rows // 2 - 1) + here // half * (rows // 2)
    else:
        output = tl.program_id(0) * ROWS + here
        n = tl.minimum(output, rows - 1)
    row = n.to(tl.int64)[:, None]
    word = tl.arange(0, 4)[None, None, :]
    total = tl.zeros((ROWS, GROUP), tl.float32)
    for begin in tl.range(0, CHUNKS, GROUP):
        chunk = (begin + tl.arange(0, GROUP))[None, :]
        there = chunk < CHUNKS
        at = (row * CHUNKS + chunk)[:, :, None] * 4 + word
        low = tl.load(low_ptr + at, mask=there[:, :, None], other=0)
        high = low
        if HIGH > 0:
            high = tl.load(high_ptr + at, mask=there[:, :, None], other=0)
        scale = scale_of(scale_ptr, unit_ptr, step, row, chunk, there, 0, HALVES, parts, CHUNKS, UNITS)
        if HALVES == 2:
            upper_scale = scale_of(
                scale_ptr, unit_ptr, step, row, chunk, there, 1, HALVES, parts, CHUNKS, UNITS
            )
        if MINIMUM:
            least = scale_of(
                scale_ptr, unit_ptr, step, row, chunk, there, HALVES, HALVES, parts, CHUNKS, UNITS
            )
            if HALVES == 2:
                upper_least = scale_of(
                    scale_ptr, unit_ptr, step, row, chunk, there, 3, HALVES, parts, CHUNKS, UNITS
                )
        if CHAINED:  # noqa: SIM102 - one is known to the compiler
            if begin == 0:
                gdc_wait()
        firsts, seconds = codes_of(low, high, False, HIGH), codes_of(low, high, True, HIGH)
        at_x, there_x = chunk[:, :, None], there[:, :, None]
        first_0, second_0 = pair_of_x(x_ptr, at_x, word, there_x, 0, WHOLE)
        first_1, second_1 = pair_of_x(x_ptr, at_x, word, there_x, 1, WHOLE)
        first_2, second_2 = pair_of_x(x_ptr, at_x, word, there_x, 2, WHOLE)
        first_3, second_3 = pair_of_x(x_ptr, at_x, word, there_x, 3, WHOLE)
        if INTEGERS:
            most = tl.maximum(larger(first_0, second_0), larger(first_1, second_1))
            most = tl.maximum(most, tl.maximum(larger(first_2, second_2), larger(first_3, second_3)))
            most = tl.max(most, axis=2)
            unit = most / 32767.0
            factor = (32767.0 / tl.maximum(most, 1e-30))[:, :, None]
            lower_firsts = in_sixteen_bits(first_0, first_1, factor)
            upper_firsts = in_sixteen_bits(first_2, first_3, factor)
            lower_seconds = in_sixteen_bits(second_0, second_1, factor)
            upper_seconds = in_sixteen_bits(second_2, second_3, factor)
            ones = tl.full((1, GROUP, 4), 0x01010101, tl.int32)
            none = tl.zeros((1, GROUP, 4), tl.int32)
            lower_x = dot_two(
                lower_seconds, ones, dot_two(lower_firsts, ones, none, False, FAST), False, FAST
            )
            upper_x = dot_two(upper_seconds, ones, dot_two(upper_firsts, ones, none, True, FAST), True, FAST)
            lower = tl.zeros((ROWS, GROUP, 4), tl.int32)
            lower = dot_two(lower_firsts, firsts, lower, False, FAST)
            lower = dot_two(lower_seconds, seconds, lower, False, FAST)
            upper = lower if HALVES == 1 else tl.zeros((ROWS, GROUP, 4), tl.int32)
            upper = dot_two(upper_firsts, firsts, upper, True, FAST)
            upper = dot_two(upper_seconds, seconds, upper, True, FAST)
        else:
            unit = 1.0
            lower_x = first_0 + second_0 + first_1 + second_1
            upper_x = first_2 + second_2 + first_3 + second_3
            lower = meaning_of(firsts, table_ptr, 0, 0, TABLE) * first_0
            lower += meaning_of(seconds, table_ptr, 0, 0, TABLE) * second_0
            lower += meaning_of(firsts, table_ptr, 1, 0, TABLE) * first_1
            lower += meaning_of(seconds, table_ptr, 1, 0, TABLE) * second_1
            upper = lower if HALVES == 1 else tl.zeros((ROWS, GROUP, 4), tl.float32)
            upper += meaning_of(firsts, table_ptr, 2, 0, TABLE) * first_2
            upper += meaning_of(seconds, table_ptr, 2, 0, TABLE) * second_2
            upper += meaning_of(firsts, table_ptr, 3, 0, TABLE) * first_3
            upper += meaning_of(seconds, table_ptr, 3, 0, TABLE) * second_3
        if HALVES == 1:
            sum_x = tl.sum(lower_x + upper_x, axis=2)
            found = scale * (tl.sum(upper, axis=2) - LESS * sum_x).to(tl.float32)
            if MINIMUM:
                found -= least * sum_x.to(tl.float32)
        else:
            lower_sum, upper_sum = tl.sum(lower_x, axis=2), tl.sum(upper_x, axis=2)
            found = scale * (tl.sum(lower, axis=2) - LESS * lower_sum).to(tl.float32)
            found += upper_scale * (tl.sum(upper, axis=2) - LESS * upper_sum).to(tl.float32)
            if MINIMUM:
                found -= least * lower_sum.to(tl.float32) + upper_least * upper_sum.to(tl.float32)
        total += unit * found
    if CHAINED:
        gdc_launch_dependents()
    result = tl.sum(total, axis=1)
    if BIAS:
        result += tl.load(bias_ptr + n).to(tl.float32)
    if GATED:
        gate, up = tl.split(tl.trans(tl.reshape(result, (2, half))))
        gated = gate / (1 + tl.exp(-gate)) * up
        place = tl.program_id(0) * half + tl.arange(0, half)
        tl.store(out_ptr + place, gated.to(out_ptr.dtype.element_ty), mask=place < rows // 2)
    else:
        tl.store(out_ptr + output, result.to(out_ptr.dtype.element_ty), mask=output < rows)


@dataclass(frozen=True)
class Tiling:
    """How a product is dealt out. rows: of the weight, for a program; warps: that share each row."""

    rows: int
    warps: int


def tiling(weight: PlaneWeight) -> Tiling:
    """How a weight of this shape is dealt out: so many warps share a row as there are not rows enough to keep
    a GPU busy, as measured on an H100 (docs/performance.md).
    """
    warps, programs = 1, triton.cdiv(weight.rows, ROWS)
    while (
        warps < MOST_WARPS
        and warps * programs < BUSY
        and -weight.chunks % (2 * warps * LANES) <= WASTE * weight.chunks
    ):
        warps *= 2
    return Tiling(ROWS, warps)


def multiply_vector(
    x: Tensor,
    weight: PlaneWeight,
    bias: Tensor | None = None,
    gated: bool = False,
    tiles: Tiling | None = None,
    chained: bool | None = None,
) -> Tensor:
    """`F.linear` of one row, x [..., columns] of that many numbers: [..., rows] in its dtype.

    gated: the weight is a gate's and another one of as many rows behind it; the result is silu(gate) * other.
    tiles, chained: None is the best that is known for this weight and device.
    """
    tiles = tiles or tiling(weight)
    chained = chains(x.device) if chained is None else chained
    x = x.contiguous()
    outputs = weight.rows // 2 if gated else weight.rows
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    whole = x.dtype == torch.bfloat16 and x.data_ptr() % 16 == 0
    integers = x.dtype.itemsize == 2 and weight.table is None
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    plane_product_kernel[(triton.cdiv(weight.rows, tiles.rows),)](
        x.view(torch.int32) if whole else x, *planes(weight), x if bias is None else bias, out, weight.rows,
        **constants(weight), BIAS=bias is not None, GATED=gated, ROWS=tiles.rows, GROUP=tiles.warps * LANES,
        WHOLE=whole, INTEGERS=integers, FAST=has_ptx(), CHAINED=chained, num_warps=tiles.warps, **chain,
    )  # fmt: skip
    return out
