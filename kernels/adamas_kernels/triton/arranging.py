"""A few rows of 16-bit numbers, arranged once as operands of tensor cores for all products that read them.

RMSNorm and the gate of an MLP need no kernels of their own: rows are normalized, or gated, where they are
arranged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.codes import turned
from adamas_kernels.triton.fragments import LANES, SHARING, STEPS, TILE_FEW
from adamas_kernels.triton.launch import chains, next_power
from adamas_kernels.triton.planes import CHUNK

MOST_FEW_TILES = 4  # of rows of x, in a program of a product
ARRANGED = 128  # pairs of words that a program arranges
NORM_WARPS = 8  # of a program that normalizes a row
PAIRS = tl.constexpr(8)  # of words, in a chunk


@triton.jit
def half_in(words, PART: tl.constexpr):
    """One of the float16 numbers in each word, as float32."""
    return (words.to(tl.int32) >> (16 * PART)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def number_in(words, UPPER: tl.constexpr, BRAIN: tl.constexpr):
    """One of the two 16-bit numbers in each int32, as float32."""
    if BRAIN:
        number = (words & -0x10000 if UPPER else words << 16).to(tl.float32, bitcast=True)
    else:
        number = half_in(words, 1 if UPPER else 0)
    return number


@triton.jit
def rounded(numbers, BRAIN: tl.constexpr):
    """float32 numbers rounded to 16 bits, as float32 again."""
    return numbers.to(tl.bfloat16 if BRAIN else tl.float16).to(tl.float32)


@triton.jit
def word_of(lower, upper, BRAIN: tl.constexpr):
    """The int32 that holds two float32 numbers, each rounded to 16 bits."""
    kind: tl.constexpr = tl.bfloat16 if BRAIN else tl.float16
    first = lower.to(kind).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return first | (upper.to(kind).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def store_pair(out_ptr, at, first, second, inside):
    """Two words of two numbers each, as words of an operand: both first numbers, then both second ones."""
    tl.store(out_ptr + 2 * at, (first & 0xFFFF) | (second << 16), mask=inside)
    tl.store(out_ptr + 2 * at + 1, ((first >> 16) & 0xFFFF) | (second & -0x10000), mask=inside)


@triton.jit
def gated_words(gate, up, BRAIN: tl.constexpr):
    """silu(gate) * up of both numbers of each word."""
    low, high = number_in(gate, False, BRAIN), number_in(gate, True, BRAIN)
    low = low / (1 + tl.exp(-low)) * number_in(up, False, BRAIN)
    high = high / (1 + tl.exp(-high)) * number_in(up, True, BRAIN)
    return word_of(low, high, BRAIN)


@triton.jit(do_not_specialize=["count"])
def arrange_tiles_kernel(
    x_ptr, out_ptr, count,
    CHUNKS: tl.constexpr, FEW_TILES: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    GATED: tl.constexpr, BRAIN: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (BLOCK pairs of words): x [count, CHUNKS * 16 words of two numbers] as operands of `multiply`,
    with zeros for missing rows: out [PARTS, CHUNKS, FEW_TILES, LANES, STEPS, 2 words].

    GATED: x has twice as many words in a row, those of a gate and then of what it gates.
    """
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    step, lane = at % STEPS, at // STEPS % LANES
    tile, chunk = at // (STEPS * LANES) % FEW_TILES, at // (STEPS * LANES * FEW_TILES) % CHUNKS
    part = at // (STEPS * LANES * FEW_TILES * CHUNKS)
    m = (part * FEW_TILES + tile) * TILE_FEW + lane // SHARING
    inside = part < PARTS
    known = inside & (m < count)
    place = x_ptr + (m * (2 * CHUNKS if GATED else CHUNKS) + chunk).to(tl.int64) * 16 + lane % SHARING
    one, other = turned(chunk, 2 * step) * 4, turned(chunk, 2 * step + 1) * 4
    first = tl.load(place + one, mask=known, other=0)
    second = tl.load(place + other, mask=known, other=0)
    if GATED:
        place += CHUNKS * 16
        first = gated_words(first, tl.load(place + one, mask=known, other=0), BRAIN)
        second = gated_words(second, tl.load(place + other, mask=known, other=0), BRAIN)
    store_pair(out_ptr, at, first, second, inside)


@triton.jit(do_not_specialize=["count"])
def norm_tiles_kernel(
    x_ptr, weight_ptr, out_ptr, count, epsilon,
    CHUNKS: tl.constexpr, FEW_TILES: tl.constexpr, BLOCK: tl.constexpr, BRAIN: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (a row): RMSNorm of x, see `arrange_tiles_kernel`. Rounded as transformers' modules round: what
    is divided, and then the product with the weight.
    """
    if CHAINED:
        gdc_launch_dependents()
    m, pair = tl.program_id(0), tl.arange(0, BLOCK)
    chunk, step, share = pair // PAIRS, pair // SHARING % STEPS, pair % SHARING
    inside = chunk < CHUNKS
    one = chunk * 16 + turned(chunk, 2 * step) * 4 + share
    other = chunk * 16 + turned(chunk, 2 * step + 1) * 4 + share
    weight_one = tl.load(weight_ptr + one, mask=inside, other=0)
    weight_other = tl.load(weight_ptr + other, mask=inside, other=0)
    if CHAINED:
        gdc_wait()
    known = inside & (m < count)
    row = x_ptr + m.to(tl.int64) * (CHUNKS * 16)
    words_one, words_other = (
        tl.load(row + one, mask=known, other=0),
        tl.load(row + other, mask=known, other=0),
    )
    a, b = number_in(words_one, False, BRAIN), number_in(words_one, True, BRAIN)
    c, d = number_in(words_other, False, BRAIN), number_in(words_other, True, BRAIN)
    factor = tl.rsqrt(tl.sum(a * a + b * b + c * c + d * d) / (CHUNKS * 32) + epsilon)
    first = word_of(
        rounded(a * factor, BRAIN) * number_in(weight_one, False, BRAIN),
        rounded(b * factor, BRAIN) * number_in(weight_one, True, BRAIN), BRAIN,
    )  # fmt: skip
    second = word_of(
        rounded(c * factor, BRAIN) * number_in(weight_other, False, BRAIN),
        rounded(d * factor, BRAIN) * number_in(weight_other, True, BRAIN), BRAIN,
    )  # fmt: skip
    tile, part = m // TILE_FEW % FEW_TILES, m // (TILE_FEW * FEW_TILES)
    lane = m % TILE_FEW * SHARING + share
    at = (((part * CHUNKS + chunk) * FEW_TILES + tile) * LANES + lane) * STEPS + step
    store_pair(out_ptr, at, first, second, inside)


@dataclass(frozen=True)
class Arranged:
    """Rows as operands. words: int32; few_tiles: tiles of rows in each of `parts` programs."""

    words: Tensor
    few_tiles: int
    parts: int

    @classmethod
    def empty(cls, count: int, columns: int, device: torch.device) -> Arranged:
        """For this many rows of this many numbers, uninitialized."""
        few_tiles = min(MOST_FEW_TILES, triton.cdiv(count, TILE_FEW.value))
        parts = triton.cdiv(count, few_tiles * TILE_FEW.value)
        size = parts * few_tiles * TILE_FEW.value * columns // 2
        return cls(torch.empty(size, dtype=torch.int32, device=device), few_tiles, parts)


def arranged(x: Tensor, chained: bool) -> Arranged:
    """Rows x [..., n], bfloat16 or float16, n a multiple of 32, arranged: as attached by `norm_rows` or
    `gate_rows`, or arranged here.
    """
    known: Arranged | None = getattr(x, _ARRANGED, None)
    return _arrange(x, x.shape[-1], chained) if known is None else known


def norm_rows(x: Tensor, weight: Tensor, epsilon: float, chained: bool | None = None) -> Tensor:
    """RMSNorm of a few rows x [..., n], 16-bit numbers as the weight's, n a multiple of 32, only for products
    that take `arranged` rows.

    The result has x's shape but no numbers, as that of `norm_vector`. chained: None chooses by device.
    """
    flat, chained = _rows(x), chains(x.device) if chained is None else chained
    out, chunks = Arranged.empty(len(flat), x.shape[-1], x.device), x.shape[-1] // CHUNK
    norm_tiles_kernel[(out.parts * out.few_tiles * TILE_FEW.value,)](
        flat.view(torch.int32), weight.view(torch.int32), out.words, len(flat), epsilon, CHUNKS=chunks,
        FEW_TILES=out.few_tiles, BLOCK=next_power(chunks * PAIRS.value), BRAIN=x.dtype == torch.bfloat16,
        CHAINED=chained, num_warps=NORM_WARPS, **_chain(chained),
    )  # fmt: skip
    return _stand_in(x, x.shape[-1], out)


def gate_rows(x: Tensor, chained: bool | None = None) -> Tensor:
    """silu(gate) * up of a few rows [..., 2 n] of gates and as many numbers that they gate: [..., n], as from
    `norm_rows`.
    """
    chained = chains(x.device) if chained is None else chained
    columns = x.shape[-1] // 2
    return _stand_in(x, columns, _arrange(x, columns, chained, gated=True))


def _arrange(x: Tensor, columns: int, chained: bool, *, gated: bool = False) -> Arranged:
    flat = _rows(x)
    out = Arranged.empty(len(flat), columns, x.device)
    arrange_tiles_kernel[(triton.cdiv(out.words.numel() // 2, ARRANGED),)](
        flat.view(torch.int32), out.words, len(flat), CHUNKS=columns // CHUNK, FEW_TILES=out.few_tiles,
        PARTS=out.parts, BLOCK=ARRANGED, GATED=gated, BRAIN=x.dtype == torch.bfloat16, CHAINED=chained,
        num_warps=ARRANGED // LANES.value, **_chain(chained),
    )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _stand_in(x: Tensor, columns: int, rows: Arranged) -> Tensor:
    stand_in = torch.empty(*x.shape[:-1], columns, dtype=x.dtype, device="meta")
    setattr(stand_in, _ARRANGED, rows)
    return stand_in


_ARRANGED = "adamas_arranged"  # the attribute with the arranged rows


def _chain(chained: bool) -> dict[str, Any]:
    return {"launch_pdl": True} if chained else {}
