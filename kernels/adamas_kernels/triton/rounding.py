"""A vector as 16-bit integers, for products with codes: rounded once, read by every row of a weight.

Numbers are scaled by the largest of their chunk, which loses less than rounding that one to bfloat16. The
layout lets neighbouring threads of a product read neighbouring memory.

RMSNorm needs no separate kernel: numbers are multiplied by its weight before rounding, and the product
divides by the root mean square; each program here writes its share of the sum of squares.
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
from adamas_kernels.triton.launch import chains
from adamas_kernels.triton.planes import CHUNK, WORDS

# Per chunk: 16 pairs of integers, its unit as float32, and the sums of the integers of both halves.
UNIT, SUMS = tl.constexpr(16), tl.constexpr(17)
PLANES = tl.constexpr(19)
SHARED = tl.constexpr(32)  # chunks of a program, and of a share of the sum of squares


@triton.jit
def pair_of_x(x_ptr, chunk, word, there, PAIR: tl.constexpr, WHOLE: tl.constexpr):
    """The numbers of x for pair PAIR of the codes of each word, as float32.

    WHOLE: x_ptr is to int32, each with two bfloat16 numbers.
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
    """The larger of two magnitudes."""
    return tl.maximum(tl.abs(first), tl.abs(second))


@triton.jit
def in_sixteen_bits(first, second, factor):
    """Two numbers, times a factor that keeps them below 2 ^ 15, rounded to the halves of an int32."""
    # Adding 1.5 * 2 ^ 23 puts the rounded integer into the low bits of the mantissa.
    lower = (first * factor + 12582912.0).to(tl.int32, bitcast=True)
    upper = (second * factor + 12582912.0).to(tl.int32, bitcast=True)
    return (lower & 0xFFFF) | (upper << 16)


@triton.jit
def sum_of(pairs):
    """The sum of both halves of each int32."""
    return ((pairs << 16) >> 16) + (pairs >> 16)


@triton.jit
def round_kernel(
    x_ptr, weight_ptr, out_ptr,
    CHUNKS: tl.constexpr, NORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (SHARED chunks): out = x in 16 bits; with NORM, times a weight, and the sum of squares of x."""
    if CHAINED:
        gdc_launch_dependents()
    chunk = (tl.program_id(0) * SHARED + tl.arange(0, SHARED))[:, None]
    word = tl.arange(0, 4)[None, :]
    there = (chunk < CHUNKS) & (word < 4)
    if NORM:
        weight_0, other_0 = pair_of_x(weight_ptr, chunk, word, there, 0, False)
        weight_1, other_1 = pair_of_x(weight_ptr, chunk, word, there, 1, False)
        weight_2, other_2 = pair_of_x(weight_ptr, chunk, word, there, 2, False)
        weight_3, other_3 = pair_of_x(weight_ptr, chunk, word, there, 3, False)
    if CHAINED:
        gdc_wait()
    first_0, second_0 = pair_of_x(x_ptr, chunk, word, there, 0, False)
    first_1, second_1 = pair_of_x(x_ptr, chunk, word, there, 1, False)
    first_2, second_2 = pair_of_x(x_ptr, chunk, word, there, 2, False)
    first_3, second_3 = pair_of_x(x_ptr, chunk, word, there, 3, False)
    if NORM:
        squares = first_0 * first_0 + second_0 * second_0 + first_1 * first_1 + second_1 * second_1
        squares += first_2 * first_2 + second_2 * second_2 + first_3 * first_3 + second_3 * second_3
        tl.store(out_ptr + CHUNKS * PLANES + tl.program_id(0), tl.sum(squares).to(tl.int32, bitcast=True))
        first_0, second_0 = first_0 * weight_0, second_0 * other_0
        first_1, second_1 = first_1 * weight_1, second_1 * other_1
        first_2, second_2 = first_2 * weight_2, second_2 * other_2
        first_3, second_3 = first_3 * weight_3, second_3 * other_3
    most = tl.maximum(larger(first_0, second_0), larger(first_1, second_1))
    most = tl.maximum(most, tl.maximum(larger(first_2, second_2), larger(first_3, second_3)))
    most = tl.max(most, axis=1)
    factor = (32767.0 / tl.maximum(most, 1e-30))[:, None]
    lower_firsts = in_sixteen_bits(first_0, first_1, factor)
    upper_firsts = in_sixteen_bits(first_2, first_3, factor)
    lower_seconds = in_sixteen_bits(second_0, second_1, factor)
    upper_seconds = in_sixteen_bits(second_2, second_3, factor)
    place = out_ptr + chunk * 4 + word
    tl.store(place, lower_firsts, mask=there)
    tl.store(place + CHUNKS * 4, lower_seconds, mask=there)
    tl.store(place + CHUNKS * 8, upper_firsts, mask=there)
    tl.store(place + CHUNKS * 12, upper_seconds, mask=there)
    own = tl.program_id(0) * SHARED + tl.arange(0, SHARED)
    known = own < CHUNKS
    tl.store(out_ptr + CHUNKS * UNIT + own, (most / 32767.0).to(tl.int32, bitcast=True), mask=known)
    lower_sum = tl.sum(sum_of(lower_firsts) + sum_of(lower_seconds), axis=1)
    upper_sum = tl.sum(sum_of(upper_firsts) + sum_of(upper_seconds), axis=1)
    tl.store(out_ptr + CHUNKS * SUMS + own, lower_sum, mask=known)
    tl.store(out_ptr + CHUNKS * (SUMS + 1) + own, upper_sum, mask=known)


@dataclass(frozen=True)
class Rounded:
    """A vector as input of products. bits: int32, PLANES per chunk, then `shares` float32 sums of squares; if
    there are any, products are divided by the root of their mean plus `epsilon`.
    """

    bits: Tensor
    shares: int = 0
    epsilon: float = 0.0


def rounded(x: Tensor, chained: bool) -> Rounded:
    """x, a multiple of 32 numbers, rounded: as attached by `norm_vector`, or rounded here."""
    known: Rounded | None = getattr(x, _ROUNDED, None)
    return Rounded(_launch(x.contiguous(), None, chained)) if known is None else known


def norm_vector(x: Tensor, weight: Tensor, epsilon: float, chained: bool | None = None) -> Tensor:
    """RMSNorm of x [..., n], one row of a multiple of 32 numbers, only for products with codes.

    The result has x's shape but no numbers (it is on the meta device): a model passes it to products, which
    use the rounded numbers attached to it. chained: None chooses by device.
    """
    chained = chains(x.device) if chained is None else chained
    bits = _launch(x.contiguous(), weight, chained)
    stand_in = torch.empty_like(x, device="meta")
    setattr(stand_in, _ROUNDED, Rounded(bits, _programs(x.numel() // CHUNK), epsilon))
    return stand_in


_ROUNDED = "adamas_rounded"  # the attribute with the rounded numbers


def _programs(chunks: int) -> int:
    return triton.cdiv(chunks, SHARED.value)


def _launch(x: Tensor, weight: Tensor | None, chained: bool) -> Tensor:
    chunks, norm = x.numel() // CHUNK, weight is not None
    programs = _programs(chunks)
    out = torch.empty(PLANES.value * chunks + programs, dtype=torch.int32, device=x.device)
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    round_kernel[(programs,)](
        x, weight if norm else x, out, CHUNKS=chunks, NORM=norm, CHAINED=chained,
        num_warps=SHARED.value * WORDS // 32, **chain,
    )  # fmt: skip
    return out
