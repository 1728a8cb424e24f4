"""A few rows times a weight in planes, on tensor cores: the weight is read once for all rows.

Where `plane_tiles.py` cannot, the weight's numbers are unpacked in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.codes import codes_of, constants, meaning_of, planes, scale_of
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.plane_tiles import MOST_IN_TILES, multiply_tiles, takes_tiles
from adamas_kernels.triton.planes import PlaneWeight

LEAST_ROWS = 16  # of a product on tensor cores
MOST_ROWS = 32  # with more, unpacking the weight is faster
ARRANGED = 64  # words that a program arranges
ADDED = 512  # numbers whose shares a program adds
PROGRAMS_PER_SM = 6  # of two warps each, at most, where the chunks are shared out


@triton.jit
def number_of(codes, scale, least, table_ptr, PAIR: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr,
              MINIMUM: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    """The numbers of the weight in byte PAIR of codes [ROWS, GROUP, 4], as float32 [ROWS, 4 GROUP]."""
    number = meaning_of(codes, table_ptr, PAIR, LESS, TABLE) * scale[:, :, None]
    if MINIMUM:
        number -= least[:, :, None]
    return tl.reshape(number, (ROWS, GROUP * 4))


@triton.jit(do_not_specialize=["columns"])
def arrange_kernel(
    x_ptr, out_ptr, columns, CHUNKS: tl.constexpr, FEW: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (BLOCK words): numbers of x [columns, CHUNKS * 32] in the order of the planes, with zeros for
    missing rows: out [ROWS / FEW, 4 pairs, 2 numbers, CHUNKS, 4 words, FEW].
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word, chunk, kind = at % 4, at // 4 % CHUNKS, at // (4 * CHUNKS)
    pair, second = kind // 2 % 4, kind % 2
    column = chunk * 32 + (pair ^ ((chunk >> 1) & 3)) * 8 + word * 2 + second
    few = tl.arange(0, FEW)[None, :]
    m = (kind // 8 * FEW)[:, None] + few
    inside = at < ROWS // FEW * 8 * CHUNKS * 4
    known = inside[:, None] & (m < columns)
    x = tl.load(x_ptr + m.to(tl.int64) * (CHUNKS * 32) + column[:, None], mask=known, other=0.0)
    tl.store(out_ptr + at[:, None] * FEW + few, x, mask=inside[:, None])


@triton.jit(do_not_specialize=["step", "columns"])
def plane_rows_kernel(
    x_ptr, low_ptr, high_ptr, scale_ptr, unit_ptr, table_ptr, step, bias_ptr, out_ptr, rows, columns,
    CHUNKS: tl.constexpr, HIGH: tl.constexpr, HALVES: tl.constexpr, MINIMUM: tl.constexpr,
    UNITS: tl.constexpr, LESS: tl.constexpr, TABLE: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, GROUP: tl.constexpr, FEW: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (ROWS rows of the weight, FEW rows of x from `arrange_kernel`, share of the chunks): out[m, n]
    = weight[n] . x[m] + bias[n]. With several SPLITS, out is float32 [SPLITS, columns, rows], of each share.
    """
    parts: tl.constexpr = HALVES * 2 if MINIMUM else HALVES
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    few = tl.arange(0, FEW)
    m = tl.program_id(1) * FEW + few
    row = tl.minimum(n, rows - 1).to(tl.int64)[:, None]
    word = tl.arange(0, 4)[None, None, :]
    inner = tl.arange(0, GROUP * 4)[:, None]  # a word of a chunk
    x_ptr += tl.program_id(1) * (8 * CHUNKS * 4 * FEW)
    total = tl.zeros((ROWS, FEW), tl.float32)
    share: tl.constexpr = (CHUNKS + GROUP * SPLITS - 1) // (GROUP * SPLITS) * GROUP
    first = tl.program_id(2) * share
    for begin in tl.range(first, tl.minimum(first + share, CHUNKS), GROUP):
        chunk = (begin + tl.arange(0, GROUP))[None, :]
        there = chunk < CHUNKS
        at = (row * CHUNKS + chunk)[:, :, None] * 4 + word
        low = tl.load(low_ptr + at, mask=there[:, :, None], other=0)
        high = low
        if HIGH > 0:
            high = tl.load(high_ptr + at, mask=there[:, :, None], other=0)
        firsts, seconds = codes_of(low, high, False, HIGH), codes_of(low, high, True, HIGH)
        known = begin * 4 + inner < CHUNKS * 4
        place = x_ptr + (begin * 4 + inner) * FEW + few[None, :]
        for h in tl.static_range(HALVES):
            scale = scale_of(scale_ptr, unit_ptr, step, row, chunk, there, h, HALVES, parts, CHUNKS, UNITS)
            least = scale
            if MINIMUM:
                least = scale_of(
                    scale_ptr, unit_ptr, step, row, chunk, there, HALVES + h, HALVES, parts, CHUNKS, UNITS
                )
            for pair in tl.static_range(h * (4 // HALVES), (h + 1) * (4 // HALVES)):
                x = tl.load(place + 2 * pair * (CHUNKS * 4 * FEW), mask=known, other=0.0)
                weight = number_of(firsts, scale, least, table_ptr, pair, LESS, TABLE, MINIMUM, ROWS, GROUP)
                total = tl.dot(weight.to(x.dtype), x, total, input_precision=PRECISION)
                x = tl.load(place + (2 * pair + 1) * (CHUNKS * 4 * FEW), mask=known, other=0.0)
                weight = number_of(seconds, scale, least, table_ptr, pair, LESS, TABLE, MINIMUM, ROWS, GROUP)
                total = tl.dot(weight.to(x.dtype), x, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias_ptr + tl.minimum(n, rows - 1)).to(tl.float32)[:, None]
    place = out_ptr + (tl.program_id(2) * columns + m).to(tl.int64)[None, :] * rows + n[:, None]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(n < rows)[:, None] & (m < columns)[None, :])


@triton.jit
def add_shares_kernel(part_ptr, bias_ptr, out_ptr, size, rows, SPLITS: tl.constexpr, BIAS: tl.constexpr,
                      BLOCK: tl.constexpr):  # fmt: skip
    """Program (BLOCK numbers): out [size], the sum of part [SPLITS, size] in order, plus bias [rows]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    total = tl.load(part_ptr + at, mask=there, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(part_ptr + split * size.to(tl.int64) + at, mask=there, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + at % rows, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=there)


@dataclass(frozen=True)
class RowsTiling:
    """How such a product is divided: rows of the weight per program, chunks of them at a time, warps, and
    groups of chunks in flight.
    """

    rows: int = 32
    group: int = 8
    warps: int = 2
    stages: int = 3


def multiply_rows(
    x: Tensor, weight: PlaneWeight, bias: Tensor | None = None, chained: bool | None = None
) -> Tensor:
    """`F.linear` of a few rows, x [..., columns]: [..., rows] in its dtype. chained: see `multiply_tiles`."""
    if x.numel() <= MOST_IN_TILES * weight.columns and takes_tiles(x.dtype, weight):
        return multiply_tiles(x, weight, bias, chained=chained)
    return multiply_numbers(x, weight, bias)


def multiply_numbers(
    x: Tensor, weight: PlaneWeight, bias: Tensor | None = None, tiles: RowsTiling | None = None
) -> Tensor:
    """The same for every dtype, form and GPU: from unpacked numbers."""
    tiles = tiles or RowsTiling()
    flat = x.reshape(-1, weight.columns).contiguous()
    out = torch.empty(len(flat), weight.rows, dtype=x.dtype, device=x.device)
    few = max(LEAST_ROWS, min(MOST_ROWS, next_power(len(flat))))
    parts = triton.cdiv(len(flat), few)
    arranged = torch.empty(parts * few, weight.columns, dtype=x.dtype, device=x.device)
    arrange_kernel[(triton.cdiv(parts * 8 * weight.chunks * 4, ARRANGED),)](
        flat, arranged, len(flat), CHUNKS=weight.chunks, FEW=few, ROWS=parts * few, BLOCK=ARRANGED
    )
    blocks = triton.cdiv(weight.rows, tiles.rows)
    splits = _splits(x.device, blocks * parts, triton.cdiv(weight.chunks, tiles.group))
    shares = out if splits == 1 else torch.empty(splits, *out.shape, dtype=torch.float32, device=x.device)
    learned = flat if bias is None else bias
    plane_rows_kernel[(blocks, parts, splits)](
        arranged, *planes(weight), learned, shares, weight.rows, len(flat),
        **constants(weight), BIAS=bias is not None and splits == 1, ROWS=tiles.rows, GROUP=tiles.group,
        FEW=few, SPLITS=splits, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if splits > 1:
        add_shares_kernel[(triton.cdiv(out.numel(), ADDED),)](
            shares, learned, out, out.numel(), weight.rows,
            SPLITS=splits, BIAS=bias is not None, BLOCK=ADDED,
        )  # fmt: skip
    return out.view(*x.shape[:-1], weight.rows)


def _splits(device: torch.device, programs: int, groups: int) -> int:
    """Shares of the chunks, so that all programs together occupy the device; a power of two."""
    if device.type != "cuda":
        return min(2, groups)
    units = torch.cuda.get_device_properties(device).multi_processor_count
    most = min(groups, PROGRAMS_PER_SM * units // programs)
    return 1 << max(1, most).bit_length() - 1
