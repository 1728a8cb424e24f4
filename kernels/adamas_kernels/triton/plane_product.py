"""One row times a weight in planes, at the speed at which its bits can be read.

A thread holds chunks of one place in several rows of the weight, and that place of x, so that x is read and
turned into float32 once for all of them. Nothing is rounded: codes and x are multiplied and added in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.codes import (
    code_pair,
    constants,
    planes,
    scale_of,
    turned,
)
from adamas_kernels.triton.launch import chains, next_power
from adamas_kernels.triton.planes import PlaneWeight

LARGEST_GROUP = 128  # chunks of a row that a program holds at a time
WASTE = 1.08  # of the last such group of a row, beyond which a smaller one is taken
ROWS_OF_THREAD = 4
WARPS = 4
LANES = 32


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
    else:
        at = chunk * 32 + turned(chunk, PAIR) * 8 + word * 2
        first = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
        return first, tl.load(x_ptr + at + 1, mask=there, other=0.0).to(tl.float32)


@triton.jit
def plane_product_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, bias_ptr, out_ptr, rows,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, TABLE: tl.constexpr, PLACE: tl.constexpr, POWER: tl.constexpr,
    LESS: tl.constexpr, LESS_SECOND: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, WHOLE: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows of the weight): out[n] = weight[n] . x + bias[n].

    GATED: the weight is two, one behind the other, out[n] = silu(first[n] . x) * (second[n] . x) for rows / 2
    outputs, and ROWS is of both.
    """
    parts: tl.constexpr = HALVES * 2 if MINIMUM else HALVES
    here = tl.arange(0, ROWS)
    if GATED:
        half: tl.constexpr = ROWS // 2
        output = tl.program_id(0) * half + here % half
        n = tl.minimum(output, rows // 2 - 1) + here // half * (rows // 2)
    else:
        output = tl.program_id(0) * ROWS + here
        n = tl.minimum(output, rows - 1)
    row = n.to(tl.int64)[:, None]
    word = tl.arange(0, 4)[None, None, :]
    total = tl.zeros((ROWS, GROUP), tl.float32)
    if CHAINED:
        gdc_wait()
    for begin in tl.range(0, CHUNKS, GROUP):
        chunk = (begin + tl.arange(0, GROUP))[None, :]
        there = chunk < CHUNKS
        at = (row * CHUNKS + chunk)[:, :, None] * 4 + word
        low = tl.load(low_ptr + at, mask=there[:, :, None], other=0)
        high = low
        if HIGH > 0:
            high = tl.load(high_ptr + at, mask=there[:, :, None], other=0)
        for h in tl.static_range(HALVES):
            products = tl.zeros((ROWS, GROUP, 4), tl.float32)
            firsts = tl.zeros((1, GROUP, 4), tl.float32)
            seconds = tl.zeros((1, GROUP, 4), tl.float32)
            for p in tl.static_range(4 // HALVES):
                pair: tl.constexpr = h * (4 // HALVES) + p
                first_x, second_x = pair_of_x(x_ptr, chunk[:, :, None], word, there[:, :, None], pair, WHOLE)
                first, second = code_pair(low, high, table_ptr, pair, HIGH, PLACE, POWER, TABLE)
                products += first * first_x
                products += second * second_x
                firsts += first_x
                seconds += second_x
            scale = scale_of(scale_ptr, unit_ptr, row, chunk, there, h, HALVES, parts, CHUNKS, UNITS)
            products -= firsts * LESS + seconds * LESS_SECOND
            total += scale * tl.sum(products, axis=2)
            if MINIMUM:
                least = scale_of(
                    scale_ptr, unit_ptr, row, chunk, there, HALVES + h, HALVES, parts, CHUNKS, UNITS
                )
                total -= least * tl.sum(firsts + seconds, axis=2)
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
    """How a product is dealt out. rows: of the weight, for a program; group: chunks that it takes at a time."""

    rows: int
    group: int
    warps: int


def tiling(weight: PlaneWeight) -> Tiling:
    """What measured fastest for a weight of this shape."""
    group = LARGEST_GROUP
    while group > 8 and triton.cdiv(weight.chunks, group) * group > WASTE * weight.chunks:
        group //= 2
    warps = min(WARPS, max(1, group // LANES))
    return Tiling(max(2, ROWS_OF_THREAD * warps * LANES // group), group, warps)


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
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    plane_product_kernel[(triton.cdiv(weight.rows, tiles.rows),)](
        x.view(torch.int32) if whole else x, *planes(weight), x if bias is None else bias, out, weight.rows,
        **constants(weight), BIAS=bias is not None, GATED=gated, ROWS=tiles.rows, GROUP=tiles.group,
        WHOLE=whole, CHAINED=chained, num_warps=tiles.warps, **chain,
    )  # fmt: skip
    return out
