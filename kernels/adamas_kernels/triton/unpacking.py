"""Unpacks rows of a weight in planes to plain numbers: some for an embedding, all before a long product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.codes import codes_of, constants, meaning_of, planes, scale_of, turned
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.planes import PlaneWeight

ROWS = 4  # of a program
LARGEST_GROUP = 64  # chunks of each row
WARPS = 4


@triton.jit
def as_bits(number):
    """A number as bfloat16 in the lower half of an int32."""
    return number.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit(do_not_specialize=["step"])
def unpack_kernel(
    row_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, step, out_ptr, rows,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, CHOSEN: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows of the output, GROUP chunks of each).

    CHOSEN: row_ptr has the row of the weight for each output row. WHOLE: out_ptr is to int32, each with two
    bfloat16 numbers.
    """
    parts: tl.constexpr = HALVES * 2 if MINIMUM else HALVES
    output = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if CHOSEN:
        row = tl.load(row_ptr + output, mask=output < rows, other=0).to(tl.int64)[:, None]
    else:
        row = tl.minimum(output, rows - 1).to(tl.int64)[:, None]
    word = tl.arange(0, 4)[None, None, :]
    chunk = (tl.program_id(1) * GROUP + tl.arange(0, GROUP))[None, :]
    there = (output < rows)[:, None] & (chunk < CHUNKS)
    shown = there[:, :, None]
    at = (row * CHUNKS + chunk)[:, :, None] * 4 + word
    low = tl.load(low_ptr + at, mask=shown, other=0)
    high = low
    if HIGH > 0:
        high = tl.load(high_ptr + at, mask=shown, other=0)
    firsts, seconds = codes_of(low, high, False, HIGH), codes_of(low, high, True, HIGH)
    begin = (output.to(tl.int64)[:, None] * CHUNKS + chunk)[:, :, None]
    for h in tl.static_range(HALVES):
        scale = scale_of(scale_ptr, unit_ptr, step, row, chunk, there, h, HALVES, parts, CHUNKS, UNITS)
        for pair in tl.static_range(h * (4 // HALVES), (h + 1) * (4 // HALVES)):
            first = meaning_of(firsts, table_ptr, pair, LESS, TABLE) * scale[:, :, None]
            second = meaning_of(seconds, table_ptr, pair, LESS, TABLE) * scale[:, :, None]
            if MINIMUM:
                least = scale_of(
                    scale_ptr, unit_ptr, step, row, chunk, there, HALVES + h, HALVES, parts, CHUNKS, UNITS
                )
                first -= least[:, :, None]
                second -= least[:, :, None]
            turn = turned(chunk[:, :, None], pair)
            if WHOLE:
                place = out_ptr + begin * 16 + turn * 4 + word
                tl.store(place, as_bits(first) | (as_bits(second) << 16), mask=shown)
            else:
                place = out_ptr + begin * 32 + turn * 8 + word * 2
                tl.store(place, first.to(out_ptr.dtype.element_ty), mask=shown)
                tl.store(place + 1, second.to(out_ptr.dtype.element_ty), mask=shown)


def unpack_rows(weight: PlaneWeight, out: Tensor, rows: Tensor | None = None) -> None:
    """Write all rows of a weight, or the given ones, int [N], to out [rows or N, columns]."""
    group = min(LARGEST_GROUP, next_power(weight.chunks))
    whole = out.dtype == torch.bfloat16
    target = out.view(torch.int32) if whole else out
    unpack_kernel[(triton.cdiv(len(out), ROWS), triton.cdiv(weight.chunks, group))](
        weight.low if rows is None else rows, *planes(weight), target, len(out),
        **constants(weight), CHOSEN=rows is not None, WHOLE=whole, ROWS=ROWS, GROUP=group, num_warps=WARPS,
    )  # fmt: skip


def embed(weight: PlaneWeight, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of tokens [...] as [..., columns]."""
    out = torch.empty(tokens.numel(), weight.columns, dtype=dtype, device=weight.device)
    unpack_rows(weight, out, tokens.reshape(-1))
    return out.view(*tokens.shape, weight.columns)
