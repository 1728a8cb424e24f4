"""A few rows times a weight in planes, on tensor cores: the weight is read once for all rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.codes import codes_of, constants, meaning_of, planes, scale_of, turned
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.planes import PlaneWeight

LEAST_ROWS = 16  # of a product on tensor cores
MOST_ROWS = 32  # with more, unpacking the weight is faster
STAGES = 2  # groups of chunks in flight per program


@triton.jit
def number_of(codes, scale, least, table_ptr, PAIR: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr,
              MINIMUM: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """The numbers of the weight in byte PAIR of codes [ROWS, GROUP, 4], as float32 [ROWS, 4 GROUP]."""
    number = meaning_of(codes, table_ptr, PAIR, LESS, TABLE) * scale[:, :, None]
    if MINIMUM:
        number -= least[:, :, None]
    return tl.reshape(number, (ROWS, GROUP * 4))


@triton.jit(do_not_specialize=["step", "columns"])
def plane_rows_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, step, bias_ptr, out_ptr, rows, columns,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, FEW: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows of the weight, FEW rows of x [columns, CHUNKS * 32]): out[m, n] = weight[n] . x[m] +
    bias[n]. WHOLE: x_ptr is to int32, each with two bfloat16 numbers.
    """
    parts: tl.constexpr = HALVES * 2 if MINIMUM else HALVES
    numbers: tl.constexpr = 1 if WHOLE else 2  # step from a word's numbers in x to the next word's
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * FEW + tl.arange(0, FEW)
    row = tl.minimum(n, rows - 1).to(tl.int64)[:, None]
    word = tl.arange(0, 4)[None, None, :]
    inner = tl.arange(0, GROUP * 4)[:, None]  # a word of a chunk
    total = tl.zeros((ROWS, FEW), tl.float32)
    for begin in tl.range(0, CHUNKS, GROUP):
        chunk = (begin + tl.arange(0, GROUP))[None, :]
        there = chunk < CHUNKS
        at = (row * CHUNKS + chunk)[:, :, None] * 4 + word
        low = tl.load(low_ptr + at, mask=there[:, :, None], other=0)
        high = low
        if HIGH > 0:
            high = tl.load(high_ptr + at, mask=there[:, :, None], other=0)
        firsts, seconds = codes_of(low, high, False, HIGH), codes_of(low, high, True, HIGH)
        inner_chunk = begin + inner // 4
        known = (inner_chunk < CHUNKS) & (m < columns)[None, :]
        x_row = x_ptr + (m.to(tl.int64)[None, :] * (CHUNKS * 16) + inner_chunk * 16 + inner % 4) * numbers
        for h in tl.static_range(HALVES):
            scale = scale_of(scale_ptr, unit_ptr, step, row, chunk, there, h, HALVES, parts, CHUNKS, UNITS)
            least = scale
            if MINIMUM:
                least = scale_of(
                    scale_ptr, unit_ptr, step, row, chunk, there, HALVES + h, HALVES, parts, CHUNKS, UNITS
                )
            for pair in tl.static_range(h * (4 // HALVES), (h + 1) * (4 // HALVES)):
                if WHOLE:
                    both = tl.load(x_row + turned(inner_chunk, pair) * 4, mask=known, other=0)
                    first_x = (both & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
                    second_x = (both >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
                else:
                    place = x_row + turned(inner_chunk, pair) * 8
                    first_x = tl.load(place, mask=known, other=0.0)
                    second_x = tl.load(place + 1, mask=known, other=0.0)
                weight = number_of(firsts, scale, least, table_ptr, pair, LESS, TABLE, MINIMUM, ROWS, GROUP)
                total = tl.dot(weight.to(first_x.dtype), first_x, total, input_precision=PRECISION)
                weight = number_of(seconds, scale, least, table_ptr, pair, LESS, TABLE, MINIMUM, ROWS, GROUP)
                total = tl.dot(weight.to(second_x.dtype), second_x, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias_ptr + tl.minimum(n, rows - 1)).to(tl.float32)[:, None]
    place = out_ptr + m.to(tl.int64)[None, :] * rows + n[:, None]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(n < rows)[:, None] & (m < columns)[None, :])


@dataclass(frozen=True)
class RowsTiling:
    """How such a product is divided: rows of the weight per program, chunks of them at a time, warps."""

    rows: int = 32
    group: int = 16
    warps: int = 4


def multiply_rows(
    x: Tensor, weight: PlaneWeight, bias: Tensor | None = None, tiles: RowsTiling | None = None
) -> Tensor:
    """`F.linear` of a few rows, x [..., columns]: [..., rows] in its dtype."""
    tiles = tiles or RowsTiling()
    flat = x.reshape(-1, weight.columns).contiguous()
    out = torch.empty(len(flat), weight.rows, dtype=x.dtype, device=x.device)
    whole = x.dtype == torch.bfloat16
    few = max(LEAST_ROWS, min(MOST_ROWS, next_power(len(flat))))
    plane_rows_kernel[(triton.cdiv(weight.rows, tiles.rows), triton.cdiv(len(flat), few))](
        flat.view(torch.int32) if whole else flat, *planes(weight), flat if bias is None else bias, out,
        weight.rows, len(flat),
        **constants(weight), BIAS=bias is not None, ROWS=tiles.rows, GROUP=tiles.group, FEW=few, WHOLE=whole,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=tiles.warps, num_stages=STAGES,
    )  # fmt: skip
    return out.view(*x.shape[:-1], weight.rows)
