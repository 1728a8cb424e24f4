"""A few rows of 16-bit numbers times a weight of integers in planes, on NVIDIA's tensor cores.

A warp multiplies tiles of sixteen rows of the weight, one chunk at a time, directly from the words of codes:
each lane loads the words that its operands are made of, so that no code moves between lanes
(`fragments.py`). The warps of a program share the chunks of its rows. Sums over a chunk, or over half of one,
are of whole codes; the scales multiply them in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.arranging import arranged, half_in
from adamas_kernels.triton.codes import codes_of, constants
from adamas_kernels.triton.fragments import (
    LANES,
    ROWS_OF_LANE,
    SHARING,
    STEPS,
    TILE_FEW,
    TILE_ROWS,
    head_of,
    load_four,
    meaning,
    multiply,
    pair_of,
    two_of,
    unit_of,
)
from adamas_kernels.triton.launch import chains, has_ptx
from adamas_kernels.triton.planes import PlaneWeight

MOST_IN_TILES = 16  # rows that are multiplied from codes; more are not faster so
SCALE_BYTES = 8  # most bytes of scales that are loaded at once
MOST_WARPS = 8  # that share a row
BUSY = 3500  # warps with one tile each that keep the memory of the largest GPUs busy
LEAST_CHUNKS = 12  # of a warp
MANY_ROWS = 24_000  # of a weight: programs take two tiles, so that x is read half as often


@triton.jit
def load_group(
    low_ptr, high_ptr, scale_ptr, unit_ptr, rows, group, word, there,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, UNITS: tl.constexpr, TILES: tl.constexpr,
    GROUP: tl.constexpr, SPAN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Each lane's words of GROUP chunks of its rows, and the scales and units of these; scales are zeros if
    the group is not `there`.
    """
    lows, highs, scales, units = (), (), (), ()
    for r in tl.static_range(ROWS_OF_LANE * TILES):
        for j in tl.static_range(GROUP):
            at = rows[r] * (CHUNKS * 4) + group * (GROUP * 4) + word + 4 * j
            lows += (tl.load(low_ptr + at),)  # type: ignore[assignment]
            if HIGH > 0:
                highs += (tl.load(high_ptr + at),)  # type: ignore[assignment]
        for j in tl.static_range(GROUP // SPAN):
            place = scale_ptr + rows[r] * (CHUNKS // SPAN) + group * (GROUP // SPAN) + j
            if WHOLE:
                scales += (tl.load(place),)  # type: ignore[assignment]
            else:
                scales += (tl.load(place, mask=there, other=0),)  # type: ignore[assignment]
        if UNITS:
            units += (tl.load(unit_ptr + rows[r] * (CHUNKS // 8) + ((group * GROUP) >> 3)),)  # type: ignore[assignment]
    return lows, highs, scales, units


@triton.jit
def add_step(sums, low, high, x, head, STEP: tl.constexpr, HIGH: tl.constexpr,
             BRAIN: tl.constexpr, WARPS: tl.constexpr, FAST: tl.constexpr):  # fmt: skip
    """sums + products of one step of codes, whose words of both of a lane's rows are given, and x."""
    first_0, first_1 = codes_of(low[0], high[0], False, HIGH), codes_of(low[1], high[1], False, HIGH)
    second_0, second_1 = codes_of(low[0], high[0], True, HIGH), codes_of(low[1], high[1], True, HIGH)
    return multiply(
        pair_of(first_0, head, STEP, FAST), pair_of(first_1, head, STEP, FAST),
        pair_of(second_0, head, STEP, FAST), pair_of(second_1, head, STEP, FAST),
        x[2 * STEP], x[2 * STEP + 1], sums, BRAIN, WARPS, FAST,
    )  # fmt: skip


@triton.constexpr_function
def less_of(less, high, brain):
    """What operands exceed the values of their codes by, see `meaning`."""
    return less + meaning(brain, brain and high == 4)


@triton.jit
def sums_of_x(
    x, times, HALF: tl.constexpr, HALVES: tl.constexpr, TIMES: tl.constexpr, BRAIN: tl.constexpr,
    WARPS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Sums over a half, or all, of a chunk of x, times TIMES, for every row as in `multiply`. times: four
    words of that number.
    """
    sums = (tl.zeros((LANES * WARPS,), tl.float32),) * 4
    if TIMES != 0:
        for step in tl.static_range(HALF * (STEPS // HALVES), (HALF + 1) * (STEPS // HALVES)):
            sums = multiply(
                times[0], times[1], times[2], times[3], x[2 * step], x[2 * step + 1], sums, BRAIN, WARPS, FAST
            )
    return sums


@triton.jit
def sums_of_codes(
    low, high, x, sums, heads, HALF: tl.constexpr, HALVES: tl.constexpr, HIGH: tl.constexpr,
    BRAIN: tl.constexpr, WARPS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """sums + the same of codes times x, see `add_step`."""
    split: tl.constexpr = BRAIN and HIGH == 4
    for step in tl.static_range(HALF * (STEPS // HALVES), (HALF + 1) * (STEPS // HALVES)):
        sums = add_step(sums, low, high, x, heads[0], step, 0 if split else HIGH, BRAIN, WARPS, FAST)
        if split:
            sums = add_step(sums, high, high, x, heads[1], step, 0, BRAIN, WARPS, FAST)
    return sums


@triton.jit
def scaled(words, units, PART: tl.constexpr, KIND: tl.constexpr, UNITS: tl.constexpr, TIMES: tl.constexpr):
    """One of the scales in each word of a chunk, in float32, times TIMES. KIND: of its unit: 0 for a scale, 1
    for a minimum.
    """
    if UNITS:
        number = ((words.to(tl.int32) << (24 - 8 * PART)) >> 24).to(tl.float32)
        value = number * (half_in(units, KIND) * TIMES)
    else:
        value = half_in(words, PART) * TIMES
    return value


@triton.jit
def four_of(totals, NUMBER: tl.constexpr):
    """The four sums of a tile of rows with a tile of rows of x."""
    return totals[4 * NUMBER], totals[4 * NUMBER + 1], totals[4 * NUMBER + 2], totals[4 * NUMBER + 3]


@triton.jit(do_not_specialize=["one", "rows", "count"])
def plane_tiles_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, one, bias_ptr, out_ptr, rows, count,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, BIAS: tl.constexpr, EACH: tl.constexpr, BRAIN: tl.constexpr,
    TILES: tl.constexpr, FEW_TILES: tl.constexpr, GROUP: tl.constexpr, SPAN: tl.constexpr, FULL: tl.constexpr,
    WARPS: tl.constexpr, FAST: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (TILES tiles of rows of the weight, FEW_TILES tiles of rows of x, see `arranging.py`):
    out[m, n] = weight[n] . x[m] + bias[n], or + bias[m, n] if EACH row of x has its own.

    A word at scale_ptr has the scales of SPAN chunks. one: 1, but not known to the compiler. FULL: all tiles
    have sixteen rows.
    """
    thread = tl.arange(0, LANES * WARPS)
    lane, warp = thread % LANES, thread // LANES
    begin = tl.program_id(0) * (TILE_ROWS * TILES)
    own = ()
    for r in tl.static_range(ROWS_OF_LANE * TILES):
        row = lane // SHARING + TILE_FEW * r
        if FULL:
            own += (begin.to(tl.int64) + row.to(tl.int64),)  # type: ignore[assignment]
        else:
            own += (tl.minimum(begin + row, rows - 1).to(tl.int64),)  # type: ignore[assignment]
    # With a known step, loads would get a layout of four words per lane, and words would move between lanes.
    word = lane % SHARING * one
    groups: tl.constexpr = CHUNKS // GROUP
    turns: tl.constexpr = (groups + WARPS - 1) // WARPS
    whole: tl.constexpr = groups % WARPS == 0
    parts: tl.constexpr = HALVES * 2 if MINIMUM else HALVES
    bits: tl.constexpr = 8 * parts if UNITS else 16 * parts  # of a chunk's scales
    # Sums of x are made with the factor with which they begin the sums of codes, if these need any.
    less: tl.constexpr = less_of(LESS, HIGH, BRAIN)
    times: tl.constexpr = -less if less > 0 else (1 if MINIMUM else 0)
    # Constants that the compiler cannot recognize keep registers of their own; others are moved there again
    # for each instruction, which takes as long as everything else.
    nought = lane * (one - 1)
    heads = head_of(BRAIN, False) + nought, head_of(BRAIN, True) + nought
    two: tl.constexpr = two_of(times, BRAIN)
    repeated = two + nought, two - nought, two | nought, two ^ nought
    x_ptr += tl.program_id(1).to(tl.int64) * (CHUNKS * FEW_TILES * LANES * 4)
    x_ptr += lane * 4
    nothing, totals = tl.zeros((LANES * WARPS,), tl.float32), ()
    for _ in tl.static_range(TILES * FEW_TILES * 4):
        totals += (nothing,)  # type: ignore[assignment]
    lows, highs, scales, units = load_group(
        low_ptr, high_ptr, scale_ptr, unit_ptr, own, tl.minimum(warp, groups - 1), word, warp < groups,
        CHUNKS, HIGH, UNITS, TILES, GROUP, SPAN, whole,
    )  # fmt: skip
    if CHAINED:
        gdc_wait()
    for turn in range(turns):
        group = turn * WARPS + warp
        later = group + WARPS
        next_lows, next_highs, next_scales, next_units = lows, highs, scales, units
        if turns > 1:
            next_lows, next_highs, next_scales, next_units = load_group(
                low_ptr, high_ptr, scale_ptr, unit_ptr, own, tl.minimum(later, groups - 1), word,
                later < groups, CHUNKS, HIGH, UNITS, TILES, GROUP, SPAN, whole,
            )  # fmt: skip
        first_chunk = tl.minimum(group, groups - 1) * GROUP
        for j in tl.static_range(GROUP):
            x = ()
            for few in tl.static_range(FEW_TILES):
                at = (first_chunk + j) * (FEW_TILES * LANES * 4) + few * (LANES * 4)
                x += (load_four(x_ptr + at, FAST),)  # type: ignore[assignment]
            for h in tl.static_range(HALVES):
                of_x = ()
                for few in tl.static_range(FEW_TILES):
                    of_x += (sums_of_x(x[few], repeated, h, HALVES, times, BRAIN, WARPS, FAST),)  # type: ignore[assignment]
                updated = ()
                for tile in tl.static_range(TILES):
                    low = lows[2 * tile * GROUP + j], lows[(2 * tile + 1) * GROUP + j]
                    high = low
                    if HIGH > 0:
                        high = highs[2 * tile * GROUP + j], highs[(2 * tile + 1) * GROUP + j]
                    words_0 = scales[2 * tile * (GROUP // SPAN) + j // SPAN] >> (bits * (j % SPAN))
                    words_1 = scales[(2 * tile + 1) * (GROUP // SPAN) + j // SPAN] >> (bits * (j % SPAN))
                    unit_0, unit_1 = words_0, words_1
                    if UNITS:
                        unit_0, unit_1 = units[2 * tile], units[2 * tile + 1]
                    scale_0 = scaled(words_0, unit_0, h, 0, UNITS, 1.0)
                    scale_1 = scaled(words_1, unit_1, h, 0, UNITS, 1.0)
                    for few in tl.static_range(FEW_TILES):
                        start = of_x[few] if less > 0 else (nothing, nothing, nothing, nothing)
                        sums = sums_of_codes(
                            low, high, x[few], start, heads, h, HALVES, HIGH, BRAIN, WARPS, FAST
                        )
                        before = four_of(totals, tile * FEW_TILES + few)
                        found = (
                            before[0] + scale_0 * sums[0], before[1] + scale_0 * sums[1],
                            before[2] + scale_1 * sums[2], before[3] + scale_1 * sums[3],
                        )  # fmt: skip
                        if MINIMUM:
                            least_0 = scaled(words_0, unit_0, HALVES + h, 1, UNITS, 1.0 / times)
                            least_1 = scaled(words_1, unit_1, HALVES + h, 1, UNITS, 1.0 / times)
                            found = (
                                found[0] - least_0 * of_x[few][0], found[1] - least_0 * of_x[few][1],
                                found[2] - least_1 * of_x[few][2], found[3] - least_1 * of_x[few][3],
                            )  # fmt: skip
                        updated += found  # type: ignore[assignment]
                totals = updated
        lows, highs, scales, units = next_lows, next_highs, next_scales, next_units
    if CHAINED:  # as late as in `attend_kernel`
        gdc_launch_dependents()
    few_begin = tl.program_id(1) * (FEW_TILES * TILE_FEW)
    at_lane = tl.arange(0, LANES)[:, None, None]
    odd = tl.arange(0, 2)[None, :, None]
    second_row = tl.arange(0, ROWS_OF_LANE)[None, None, :]
    for tile in tl.static_range(TILES):
        n = begin + TILE_ROWS * tile + TILE_FEW * second_row + at_lane // SHARING
        for few in tl.static_range(FEW_TILES):
            four = four_of(totals, tile * FEW_TILES + few)
            joined = tl.join(tl.join(four[0], four[1]), tl.join(four[2], four[3]))
            result = tl.sum(tl.reshape(joined, (WARPS, LANES, 2, ROWS_OF_LANE)), axis=0) * unit_of(BRAIN)
            if BIAS and not EACH:
                result += tl.load(bias_ptr + tl.minimum(n, rows - 1)).to(tl.float32)
            m = few_begin + TILE_FEW * few + at_lane % SHARING * 2 + odd
            place, there = m.to(tl.int64) * rows + n, (n < rows) & (m < count)
            if EACH:
                result += tl.load(bias_ptr + place, mask=there, other=0.0).to(tl.float32)
            tl.store(out_ptr + place, result.to(out_ptr.dtype.element_ty), mask=there)


@dataclass(frozen=True)
class TilesTiling:
    """How such a product is divided: tiles of rows per program, warps that share them, and most chunks whose
    words are loaded at once, 1, 2, 4 or 8.
    """

    tiles: int
    warps: int
    group: int = 4


def tiling(rows: int, chunks: int) -> TilesTiling:
    """How to divide a product with this many rows of this many chunks, as measured on an H100: warps share a
    row until there are enough of them, or each would have few chunks.
    """
    warps = 1
    most = min(MOST_WARPS, chunks // LEAST_CHUNKS)
    while 2 * warps <= most and warps * triton.cdiv(rows, TILE_ROWS.value) < BUSY:
        warps *= 2
    return TilesTiling(2 if rows >= MANY_ROWS else 1, warps)


def takes_tiles(dtype: torch.dtype, weight: PlaneWeight) -> bool:
    """Whether this kernel multiplies rows of this dtype by a weight, on a GPU or in the interpreter."""
    return dtype.itemsize == 2 and weight.form.integers and (has_ptx() or weight.device.type == "cpu")


def multiply_tiles(
    x: Tensor,
    weight: PlaneWeight,
    bias: Tensor | None = None,
    tiles: TilesTiling | None = None,
    chained: bool | None = None,
) -> Tensor:
    """`F.linear` of a few rows, x [..., columns], bfloat16 or float16: [..., rows] in its dtype.

    x: numbers, or rows from `norm_rows` or `gate_rows`. bias: [rows], or one of each row of x, [..., rows].
    tiles, chained: None takes the best known for this weight and device.
    """
    tiles = tiles or tiling(weight.rows, weight.chunks)
    chained = chains(weight.device) if chained is None else chained
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    count, operand = x.numel() // weight.columns, arranged(x, chained)
    if bias is not None:
        bias = bias.contiguous()
    out = torch.empty(count, weight.rows, dtype=x.dtype, device=weight.device)
    low, high, scales, units = weight.low, weight.high, weight.scales, weight.units
    size = scales.shape[-1] * scales.itemsize
    group = _divisor(weight.chunks, tiles.group)
    span = min(group, SCALE_BYTES // size)
    forms = constants(weight)
    del forms["TABLE"]
    rows = TILE_ROWS.value * tiles.tiles
    plane_tiles_kernel[(triton.cdiv(weight.rows, rows), operand.parts)](
        operand.words, low, low if high is None else high, scales.flatten().view(_WORDS[size * span]),
        low if units is None else units.flatten().view(_WORDS[units.shape[-1] * units.itemsize]),
        1, out if bias is None else bias, out, weight.rows, count,
        **forms, BIAS=bias is not None, EACH=bias is not None and bias.dim() > 1,
        BRAIN=x.dtype == torch.bfloat16, TILES=tiles.tiles, FEW_TILES=operand.few_tiles,
        GROUP=group, SPAN=span, FULL=weight.rows % rows == 0,
        WARPS=tiles.warps, FAST=has_ptx(), CHAINED=chained, num_warps=tiles.warps, **chain,
    )  # fmt: skip
    return out.view(*x.shape[:-1], weight.rows)


_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _divisor(number: int, most: int) -> int:
    """The largest power of two that divides a number, at most `most`."""
    return min(number & -number, most)
