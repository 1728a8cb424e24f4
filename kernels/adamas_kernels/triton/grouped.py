"""The experts of a mixture for many tokens, sorted by expert, on tensor cores.

Weights are unpacked for some experts at a time, into one buffer. Programs find the expert of their tile on
the device, from where the tokens of each expert end, so the host never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.experts import Experts, Gate, let_through
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.planes import PlaneWeight
from adamas_kernels.triton.unpacking import unpack_rows

LEAST_LINES, MOST_LINES = 16, 128  # of a tile; a line is one choice of a token
OUTPUTS = 128  # of a tile
INNER_BYTES = 128  # of a line multiplied at a time
STAGES = 3  # such pieces in flight per program
SUM_BLOCK = 1024  # outputs of a program that adds up choices
Buffer = Callable[[int], Tensor]  # this many numbers, valid until the next call


@dataclass(frozen=True)
class Grouping:
    """Choices of tokens, sorted by expert.

    experts: int [lines], the expert of each line. order: int64, each line's index in all [tokens * choices].
    line: int64, the inverse of order. ends: int32 [experts], where the lines of each expert end.
    """

    experts: Tensor
    order: Tensor
    line: Tensor
    ends: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Grouping:
        """Sort choices by expert. chosen: int [tokens, choices]."""
        by_line, order = chosen.flatten().sort(stable=True)
        numbers = torch.arange(max(experts, order.numel()), device=chosen.device)
        line = torch.empty_like(order).scatter_(0, order, numbers[: order.numel()])
        ends = torch.searchsorted(by_line, numbers[:experts].to(by_line.dtype), right=True, out_int32=True)
        return cls(by_line, order, line, ends)


@triton.jit(do_not_specialize=["choices", "first", "last"])
def grouped_kernel(
    x_ptr, order_ptr, ends_ptr, weight_ptr, bias_ptr, out_ptr, rows, choices, first, last,
    limit, slope, shift,
    EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, COLUMNS: tl.constexpr, SORTED: tl.constexpr,
    BIAS: tl.constexpr, GATED: tl.constexpr, LINES: tl.constexpr, OUTPUTS: tl.constexpr, INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (LINES lines of one expert of first to last, OUTPUTS of its rows): out[line, n] =
    weight[expert - first, n] . x + bias[expert, n]. x: by line if SORTED, else by token.

    GATED: rows alternate between gates and others, and each pair gives one gated output.
    """
    strips = tl.cdiv(rows, OUTPUTS)
    tile, strip = tl.program_id(0) // strips, tl.program_id(0) % strips
    each = tl.arange(0, EXPERTS_PAD)
    ends = tl.load(ends_ptr + each, mask=each < EXPERTS, other=0)
    starts = tl.load(ends_ptr + each - 1, mask=(each > 0) & (each < EXPERTS), other=0)
    tiles = (ends - starts + LINES - 1) // LINES
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), axis=0)
    if (expert >= first) & (expert < last):
        before = tl.sum(tl.where(each < expert, tiles, 0), axis=0)
        start = tl.sum(tl.where(each == expert, starts, 0), axis=0)
        end = tl.sum(tl.where(each == expert, ends, 0), axis=0)
        line = start + (tile - before) * LINES + tl.arange(0, LINES)
        there = line < end
        line = tl.where(there, line, start)
        source = line
        if not SORTED:
            source = (tl.load(order_ptr + line) // choices).to(tl.int32)
        n = strip * OUTPUTS + tl.arange(0, OUTPUTS)
        here = tl.minimum(n, rows - 1)
        inner = tl.arange(0, INNER)
        x_place = x_ptr + source.to(tl.int64)[:, None] * COLUMNS + inner[None, :]
        row = (expert - first).to(tl.int64) * rows + here
        place = weight_ptr + row[None, :] * COLUMNS + inner[:, None]
        total = tl.zeros((LINES, OUTPUTS), tl.float32)
        for _ in tl.range(0, COLUMNS, INNER):
            total = tl.dot(tl.load(x_place), tl.load(place), total, input_precision=PRECISION)
            x_place += INNER
            place += INNER
        if BIAS:
            bias = tl.load(bias_ptr + expert.to(tl.int64) * rows + here)
            total += bias.to(tl.float32)[None, :]
        if GATED:
            gate, other = tl.split(tl.reshape(total, (LINES, OUTPUTS // 2, 2)))
            gated = let_through(gate, other, limit, slope, shift)
            half = strip * (OUTPUTS // 2) + tl.arange(0, OUTPUTS // 2)
            target = out_ptr + line.to(tl.int64)[:, None] * (rows // 2) + half[None, :]
            shown = there[:, None] & (half < rows // 2)[None, :]
            tl.store(target, gated.to(out_ptr.dtype.element_ty), mask=shown)
        else:
            target = out_ptr + line.to(tl.int64)[:, None] * rows + n[None, :]
            shown = there[:, None] & (n < rows)[None, :]
            tl.store(target, total.to(out_ptr.dtype.element_ty), mask=shown)


@triton.jit
def sum_kernel(
    found_ptr, line_ptr, share_ptr, out_ptr, columns, CHOICES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (a token, BLOCK outputs): the sum of its choices' lines times their shares, in order."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(CHOICES):
        line = tl.load(line_ptr + token * CHOICES + choice)
        share = tl.load(share_ptr + token * CHOICES + choice).to(tl.float32)
        found = tl.load(found_ptr + line * columns + n, mask=n < columns, other=0.0)
        total += share * found.to(tl.float32)
    tl.store(out_ptr + token * columns + n, total.to(out_ptr.dtype.element_ty), mask=n < columns)


def add_grouped(
    x: Tensor, experts: Experts, chosen: Tensor, shares: Tensor, buffer: Buffer, most: int
) -> Tensor:
    """See `experts.add_chosen`. most: the most numbers of a weight to unpack at a time."""
    grouping = Grouping.of(chosen, experts.count)
    x, shares = x.contiguous(), shares.contiguous()

    def product(
        x: Tensor, choices: int, weight: PlaneWeight, bias: Tensor | None, gate: Gate | None
    ) -> Tensor:
        return _products(x, experts.count, weight, bias, gate, grouping, choices, buffer, most)

    inner = experts.inner(partial(product, x, chosen.shape[1]), grouping.experts)
    found = product(inner, 0, experts.down, experts.down_bias, None)
    out = x.new_empty(len(x), found.shape[1])
    block = min(SUM_BLOCK, next_power(found.shape[1]))
    sum_kernel[(len(x), triton.cdiv(found.shape[1], block))](
        found, grouping.line, shares, out, found.shape[1], CHOICES=chosen.shape[1], BLOCK=block
    )
    return out


def _products(
    x: Tensor,
    count: int,
    weight: PlaneWeight,
    bias: Tensor | None,
    gate: Gate | None,
    grouping: Grouping,
    choices: int,
    buffer: Buffer,
    most: int,
) -> Tensor:
    """Products of each line with its expert's part of a weight, [lines, rows]. choices: per token if x has
    one row per token, or 0 if x has one row per line.
    """
    lines, rows, columns = grouping.order.numel(), weight.rows // count, weight.columns
    out = x.new_empty(lines, rows if gate is None else rows // 2)
    size = max(LEAST_LINES, min(MOST_LINES, next_power(lines // count)))
    programs = (triton.cdiv(lines, size) + min(count, lines)) * triton.cdiv(rows, OUTPUTS)
    step = triton.cdiv(count, triton.cdiv(count, max(1, most // (rows * columns))))
    used = Gate() if gate is None else gate
    for first in range(0, count, step):
        last = min(first + step, count)
        part = weight.part(first * rows, last * rows)
        numbers = buffer(part.rows * columns).view(part.rows, columns)
        unpack_rows(part, numbers)
        grouped_kernel[(programs,)](
            x, grouping.order, grouping.ends, numbers, x if bias is None else bias, out, rows, choices,
            first, last, used.limit, used.slope, used.shift,
            EXPERTS=count, EXPERTS_PAD=next_power(count), COLUMNS=columns, SORTED=choices == 0,
            BIAS=bias is not None, GATED=gate is not None, LINES=size, OUTPUTS=OUTPUTS,
            **_tiling(x, columns, size),
        )  # fmt: skip
    return out


def _tiling(x: Tensor, columns: int, lines: int) -> dict[str, Any]:
    inner = INNER_BYTES // x.element_size()
    return {
        "INNER": inner if columns % inner == 0 else inner // 2,  # columns are whole chunks
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": 8 if lines == MOST_LINES else 4,
        "num_stages": STAGES,
    }
