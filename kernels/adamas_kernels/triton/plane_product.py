"""One row times a weight in planes, at the speed of reading its bits.

A thread holds the chunks at one position in several rows of the weight, and the same position of x, so that x
is read once for all of them.

16-bit x is rounded to integers first (`rounding.py`). Products with the codes and their sums are then exact,
and one instruction does two. Otherwise, and if codes index a table, everything is computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.codes import codes_of, constants, meaning_of
from adamas_kernels.triton.launch import chains, has_ptx, next_power
from adamas_kernels.triton.planes import PlaneWeight
from adamas_kernels.triton.rounding import (
    PLANES,
    SHARED,
    SUMS,
    UNIT,
    Rounded,
    in_sixteen_bits,
    larger,
    pair_of_x,
    rounded,
    sum_of,
)

LANES = 32  # of a warp, which holds this many chunks of a row at a time, one per lane
MOST_WARPS = 4  # that share a row
BUSY = 2000  # warps that keep the memory of the largest GPUs busy
WASTE = 0.4  # largest share of idle lanes; beyond it, fewer warps share a row
SHORT, LONG = 64, 256  # chunks of a row: up to SHORT a warp takes more rows, from LONG on fewer
MANY = 4096  # rows of a weight


@triton.jit
def dot_two(pairs, codes, total, UPPER: tl.constexpr, FAST: tl.constexpr):
    """total + two 16-bit integers, pairs, times the lower or the UPPER two bytes of codes.

    FAST: with one instruction (dp2a) of NVIDIA GPUs.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            "dp2a.hi.s32.u32 $0, $1, $2, $3;" if UPPER else "dp2a.lo.s32.u32 $0, $1, $2, $3;",
            "=r,r,r,r", [pairs, codes, total], dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    bytes = (codes >> 16) if UPPER else codes
    return total + ((pairs << 16) >> 16) * (bytes & 0xFF) + (pairs >> 16) * ((bytes >> 8) & 0xFF)


@triton.jit
def scales_of(scale_ptr, unit_ptr, row, chunk, there, CHUNKS: tl.constexpr, UNITS: tl.constexpr):
    """Each chunk's part of the planes of scales and units, as one word each, so that one load reads all."""
    scales = tl.load(scale_ptr + row * CHUNKS + chunk, mask=there, other=0)
    units = scales
    if UNITS:
        units = tl.load(unit_ptr + row * (CHUNKS // 8) + chunk // 8, mask=there, other=0)
    return scales, units


@triton.jit
def scale_in(
    scales, units, PART: tl.constexpr, HALVES: tl.constexpr, UNITS: tl.constexpr, BRAIN: tl.constexpr
):
    """One of the scales in the words of `scales_of`, as float32. BRAIN: they are bfloat16."""
    if UNITS:
        number = ((scales.to(tl.int32) << (24 - 8 * PART)) >> 24).to(tl.float32)
        half = (units.to(tl.int32) >> (16 * (PART // HALVES))).to(tl.int16)
        number *= half.to(tl.float16, bitcast=True).to(tl.float32)
    elif BRAIN:
        number = (scales.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        half = (scales.to(tl.int32) >> (16 * PART)).to(tl.int16)
        number = half.to(tl.float16, bitcast=True).to(tl.float32)
    return number


@triton.jit
def product_of_chunks(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, row, chunk, there, first,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BRAIN: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, INTEGERS: tl.constexpr, ROUNDED: tl.constexpr, WHOLE: tl.constexpr,
    FAST: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Products of GROUP chunks of ROWS rows with the same chunks of x, float32 [ROWS, GROUP].

    row: int64 [ROWS, 1] or [ROWS, GROUP]; chunk and there: [1, GROUP]; x_ptr: where x begins, for all chunks
    or for each, [1, GROUP, 1]. INTEGERS: x is multiplied as 16-bit integers, which are `Rounded.bits` if
    ROUNDED, else rounded here. WHOLE: see `pair_of_x`. CHAINED: for the first chunks, wait for x only after
    loading the weights has begun.
    """
    word = tl.arange(0, 4)[None, None, :]
    at = (row * CHUNKS + chunk)[:, :, None] * 4 + word
    low = tl.load(low_ptr + at, mask=there[:, :, None], other=0)
    high = low
    if HIGH > 0:
        high = tl.load(high_ptr + at, mask=there[:, :, None], other=0)
    scales, units = scales_of(scale_ptr, unit_ptr, row, chunk, there, CHUNKS, UNITS)
    if CHAINED:  # noqa: SIM102 - one is known to the compiler
        if first:
            gdc_wait()
    firsts, seconds = codes_of(low, high, False, HIGH), codes_of(low, high, True, HIGH)
    at_x, there_x = chunk[:, :, None], there[:, :, None]
    if ROUNDED:
        place = x_ptr + at_x * 4 + word
        lower_firsts = tl.load(place, mask=there_x, other=0)
        lower_seconds = tl.load(place + CHUNKS * 4, mask=there_x, other=0)
        upper_firsts = tl.load(place + CHUNKS * 8, mask=there_x, other=0)
        upper_seconds = tl.load(place + CHUNKS * 12, mask=there_x, other=0)
        unit = tl.load(x_ptr + CHUNKS * UNIT + chunk, mask=there, other=0).to(tl.float32, bitcast=True)
        lower_sum = tl.load(x_ptr + CHUNKS * SUMS + chunk, mask=there, other=0)
        upper_sum = tl.load(x_ptr + CHUNKS * (SUMS + 1) + chunk, mask=there, other=0)
    else:
        first_0, second_0 = pair_of_x(x_ptr, at_x, word, there_x, 0, WHOLE)
        first_1, second_1 = pair_of_x(x_ptr, at_x, word, there_x, 1, WHOLE)
        first_2, second_2 = pair_of_x(x_ptr, at_x, word, there_x, 2, WHOLE)
        first_3, second_3 = pair_of_x(x_ptr, at_x, word, there_x, 3, WHOLE)
    if INTEGERS:
        if not ROUNDED:
            most = tl.maximum(larger(first_0, second_0), larger(first_1, second_1))
            most = tl.maximum(most, tl.maximum(larger(first_2, second_2), larger(first_3, second_3)))
            most = tl.max(most, axis=2)
            unit = most / 32767.0
            factor = (32767.0 / tl.maximum(most, 1e-30))[:, :, None]
            lower_firsts = in_sixteen_bits(first_0, first_1, factor)
            upper_firsts = in_sixteen_bits(first_2, first_3, factor)
            lower_seconds = in_sixteen_bits(second_0, second_1, factor)
            upper_seconds = in_sixteen_bits(second_2, second_3, factor)
            lower_sum = tl.sum(sum_of(lower_firsts) + sum_of(lower_seconds), axis=2)
            upper_sum = tl.sum(sum_of(upper_firsts) + sum_of(upper_seconds), axis=2)
        lower = tl.zeros((ROWS, GROUP, 4), tl.int32)
        lower = dot_two(lower_firsts, firsts, lower, False, FAST)
        lower = dot_two(lower_seconds, seconds, lower, False, FAST)
        upper = lower if HALVES == 1 else tl.zeros((ROWS, GROUP, 4), tl.int32)
        upper = dot_two(upper_firsts, firsts, upper, True, FAST)
        upper = dot_two(upper_seconds, seconds, upper, True, FAST)
    else:
        unit = 1.0
        lower_sum = tl.sum(first_0 + second_0 + first_1 + second_1, axis=2)
        upper_sum = tl.sum(first_2 + second_2 + first_3 + second_3, axis=2)
        lower = meaning_of(firsts, table_ptr, 0, 0, TABLE) * first_0
        lower += meaning_of(seconds, table_ptr, 0, 0, TABLE) * second_0
        lower += meaning_of(firsts, table_ptr, 1, 0, TABLE) * first_1
        lower += meaning_of(seconds, table_ptr, 1, 0, TABLE) * second_1
        upper = lower if HALVES == 1 else tl.zeros((ROWS, GROUP, 4), tl.float32)
        upper += meaning_of(firsts, table_ptr, 2, 0, TABLE) * first_2
        upper += meaning_of(seconds, table_ptr, 2, 0, TABLE) * second_2
        upper += meaning_of(firsts, table_ptr, 3, 0, TABLE) * first_3
        upper += meaning_of(seconds, table_ptr, 3, 0, TABLE) * second_3
    scale = scale_in(scales, units, 0, HALVES, UNITS, BRAIN)
    if HALVES == 1:
        sum_x = lower_sum + upper_sum
        found = scale * (tl.sum(upper, axis=2) - LESS * sum_x).to(tl.float32)
        if MINIMUM:
            found -= scale_in(scales, units, 1, HALVES, UNITS, BRAIN) * sum_x.to(tl.float32)
    else:
        upper_scale = scale_in(scales, units, 1, HALVES, UNITS, BRAIN)
        found = scale * (tl.sum(lower, axis=2) - LESS * lower_sum).to(tl.float32)
        found += upper_scale * (tl.sum(upper, axis=2) - LESS * upper_sum).to(tl.float32)
        if MINIMUM:
            found -= scale_in(scales, units, 2, HALVES, UNITS, BRAIN) * lower_sum.to(tl.float32)
            found -= scale_in(scales, units, 3, HALVES, UNITS, BRAIN) * upper_sum.to(tl.float32)
    return unit * found


@triton.jit
def plane_product_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, bias_ptr, out_ptr, rows, epsilon,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr,
    BRAIN: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr, INTEGERS: tl.constexpr, FAST: tl.constexpr,
    SHARES: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows of the weight): out[n] = weight[n] . x + bias[n].

    GATED: the weight is two weights, one after the other, out[n] = silu(first[n] . x) * (second[n] . x) for
    rows / 2 outputs, and ROWS counts rows of both. INTEGERS: x_ptr, SHARES and epsilon are those of a
    `Rounded`.
    """
    half: tl.constexpr = ROWS // 2
    here = tl.arange(0, ROWS)
    if GATED:
        output = tl.program_id(0) * half + here % half
        n = tl.minimum(output, rows // 2 - 1) + here // half * (rows // 2)
    else:
        output = tl.program_id(0) * ROWS + here
        n = tl.minimum(output, rows - 1)
    row = n.to(tl.int64)[:, None]
    total = tl.zeros((ROWS, GROUP), tl.float32)
    if CHAINED:
        gdc_launch_dependents()  # the next launch still waits for the end of this one
    for begin in tl.range(0, CHUNKS, GROUP):
        chunk = (begin + tl.arange(0, GROUP))[None, :]
        total += product_of_chunks(
            x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, row, chunk, chunk < CHUNKS, begin == 0,
            CHUNKS, HIGH, HALVES, MINIMUM, UNITS, LESS, TABLE, BRAIN, ROWS, GROUP, INTEGERS, INTEGERS, False,
            FAST, CHAINED,
        )  # fmt: skip
    result = tl.sum(total, axis=1)
    if SHARES > 0:
        share = tl.arange(0, SHARES)
        squares = tl.load(x_ptr + CHUNKS * PLANES + share, mask=share * SHARED < CHUNKS, other=0)
        squares = tl.sum(squares.to(tl.float32, bitcast=True), axis=0)
        result *= tl.rsqrt(squares / (CHUNKS * 32) + epsilon)
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
    """How a product is divided. rows: of the weight, per warp; sharing: warps that share each row; beside:
    warps of a program with their own rows.
    """

    rows: int
    sharing: int
    beside: int = 1


def tiling(rows: int, chunks: int) -> Tiling:
    """How to divide a product with this many rows of this many chunks, as measured on an H100
    (docs/performance.md): warps share a row if there are too few rows to keep a GPU busy.
    """
    if rows >= MANY and chunks <= SHORT:
        return Tiling(4, 1)
    if rows >= MANY and chunks >= LONG:
        return Tiling(1, 2)
    each, warps = 2, 1
    while (
        warps < MOST_WARPS
        and warps * triton.cdiv(rows, each) < BUSY
        and -chunks % (2 * warps * LANES) <= WASTE * chunks
    ):
        warps *= 2
    return Tiling(each, warps)


def takes_integers(dtype: torch.dtype, weight: PlaneWeight) -> bool:
    """Whether a vector of this dtype is rounded to integers for a weight."""
    return dtype.itemsize == 2 and weight.form.integers


def multiply_vector(
    x: Tensor,
    weight: PlaneWeight,
    bias: Tensor | None = None,
    gated: bool = False,
    tiles: Tiling | None = None,
    chained: bool | None = None,
) -> Tensor:
    """`F.linear` of a single row, x [..., columns]: [..., rows] in its dtype.

    gated: the weight is a gate's, followed by another with equally many rows; the result is
    silu(gate) * other. tiles, chained: None takes the best known for this weight and device.
    """
    tiles = tiles or tiling(weight.rows, weight.chunks)
    chained = chains(weight.device) if chained is None else chained
    outputs = weight.rows // 2 if gated else weight.rows
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=weight.device)
    integers = takes_integers(x.dtype, weight)
    vector = rounded(x, chained) if integers else Rounded(x.contiguous())
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    rows = max(tiles.rows * tiles.beside, 2 if gated else 1)
    plane_product_kernel[(triton.cdiv(weight.rows, rows),)](
        vector.bits, weight.low, *words(weight), out if bias is None else bias, out, weight.rows,
        vector.epsilon,
        **forms(weight), BIAS=bias is not None, GATED=gated, ROWS=rows, GROUP=tiles.sharing * LANES,
        INTEGERS=integers, FAST=has_ptx(),
        SHARES=next_power(vector.shares) if vector.shares else 0, CHAINED=chained,
        num_warps=tiles.sharing * tiles.beside, **chain,
    )  # fmt: skip
    return out


_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def words(weight: PlaneWeight) -> tuple[Tensor, ...]:
    """The planes of higher bits, scales and units, and the table (any tensor for a missing one). All scales
    of a chunk are one word, and so are all units of a super block.
    """
    low, scales, units = weight.low, weight.scales, weight.units
    scales = scales.view(_WORDS[scales.shape[-1] * scales.itemsize])
    units = low if units is None else units.view(_WORDS[units.shape[-1] * units.itemsize])
    return (
        low if weight.high is None else weight.high,
        scales,
        units,
        low if weight.table is None else weight.table,
    )


def forms(weight: PlaneWeight) -> dict[str, int | bool]:
    """Compile-time constants of kernels that read `words`."""
    return {**constants(weight), "BRAIN": weight.scales.dtype == torch.bfloat16}
