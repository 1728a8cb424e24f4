"""A vector as integers of 16 bits, for products with codes: rounded once, read by every row of a weight.

The numbers of a chunk are in units of its largest one, which loses less than that one's own rounding to
bfloat16. What a thread of a product needs of a chunk lies so that threads side by side read side by side.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.triton.codes import turned
from adamas_kernels.triton.launch import chains, next_power
from adamas_kernels.triton.planes import CHUNK, WORDS

# For each chunk: 16 pairs of integers, its unit as float32, and the sums of the integers of both halves.
UNIT, SUMS = tl.constexpr(16), tl.constexpr(17)
PLANES = 19
GROUP = 32  # chunks of a program, where they do not depend on each other
MOST_WARPS = 16


@triton.jit
def pair_of_x(x_ptr, chunk, word, there, PAIR: tl.constexpr, WHOLE: tl.constexpr):
    """The numbers of x that pair PAIR of the codes of each word is for, as float32.

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
def in_sixteen_bits(first, second, factor):
    """Two numbers, times a factor that leaves them below 2 ^ 15, rounded to the halves of an int32."""
    # 1.5 * 2 ^ 23 leaves a number's integer part at the end of the mantissa.
    lower = (first * factor + 12582912.0).to(tl.int32, bitcast=True)
    upper = (second * factor + 12582912.0).to(tl.int32, bitcast=True)
    return (lower & 0xFFFF) | (upper << 16)


@triton.jit
def sum_of(pairs):
    """The sum of both halves of each int32."""
    return ((pairs << 16) >> 16) + (pairs >> 16)


@triton.jit
def store_normed(x_ptr, chunk, word, there, first, second, PAIR: tl.constexpr):
    """Store the numbers of a pair at their places in x."""
    at = chunk * 32 + turned(chunk, PAIR) * 8 + word * 2
    tl.store(x_ptr + at, first.to(x_ptr.dtype.element_ty), mask=there)
    tl.store(x_ptr + at + 1, second.to(x_ptr.dtype.element_ty), mask=there)


@triton.jit
def round_kernel(
    x_ptr, weight_ptr, epsilon, normed_ptr, out_ptr,
    CHUNKS: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (GROUP chunks): out = x in 16 bits; NORM: its RMSNorm, which is stored as well, by one
    program.
    """
    if CHAINED:
        gdc_launch_dependents()
    chunk = (tl.program_id(0) * GROUP + tl.arange(0, GROUP))[:, None]
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
        scale = tl.rsqrt(tl.sum(squares) / (CHUNKS * 32) + epsilon)
        first_0, second_0 = first_0 * scale * weight_0, second_0 * scale * other_0
        first_1, second_1 = first_1 * scale * weight_1, second_1 * scale * other_1
        first_2, second_2 = first_2 * scale * weight_2, second_2 * scale * other_2
        first_3, second_3 = first_3 * scale * weight_3, second_3 * scale * other_3
        store_normed(normed_ptr, chunk, word, there, first_0, second_0, 0)
        store_normed(normed_ptr, chunk, word, there, first_1, second_1, 1)
        store_normed(normed_ptr, chunk, word, there, first_2, second_2, 2)
        store_normed(normed_ptr, chunk, word, there, first_3, second_3, 3)
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
    own = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    known = own < CHUNKS
    tl.store(out_ptr + CHUNKS * UNIT + own, (most / 32767.0).to(tl.int32, bitcast=True), mask=known)
    lower_sum = tl.sum(sum_of(lower_firsts) + sum_of(lower_seconds), axis=1)
    upper_sum = tl.sum(sum_of(upper_firsts) + sum_of(upper_seconds), axis=1)
    tl.store(out_ptr + CHUNKS * SUMS + own, lower_sum, mask=known)
    tl.store(out_ptr + CHUNKS * (SUMS + 1) + own, upper_sum, mask=known)


def rounded(x: Tensor, chained: bool) -> Tensor:
    """x, of some multiple of 32 numbers, in 16 bits as products take it, int32: what `norm_vector` left with
    it, or made here.
    """
    known: Tensor | None = getattr(x, _ROUNDED, None)
    return _launch(x.contiguous(), None, 0.0, x, chained) if known is None else known


def norm_vector(x: Tensor, weight: Tensor, epsilon: float, chained: bool | None = None) -> Tensor:
    """RMSNorm of x [..., n], one row of some multiple of 32 numbers, in its number format.

    It brings its 16 bits along for the products that it is for, which get it from a model as it is. chained:
    None is by the device.
    """
    chained = chains(x.device) if chained is None else chained
    x = x.contiguous()
    normed = torch.empty_like(x)
    setattr(normed, _ROUNDED, _launch(x, weight, epsilon, normed, chained))
    return normed


_ROUNDED = "adamas_rounded"  # the name of that attribute


def _launch(x: Tensor, weight: Tensor | None, epsilon: float, normed: Tensor, chained: bool) -> Tensor:
    chunks = x.numel() // CHUNK
    out = torch.empty(PLANES * chunks, dtype=torch.int32, device=x.device)
    norm = weight is not None
    group = next_power(chunks) if norm else GROUP
    chain: dict[str, Any] = {"launch_pdl": True} if chained else {}
    round_kernel[(triton.cdiv(chunks, group),)](
        x, weight if norm else x, epsilon, normed, out,
        CHUNKS=chunks, GROUP=group, NORM=norm, CHAINED=chained,
        num_warps=max(1, min(MOST_WARPS, group * WORDS // 32)), **chain,
    )  # fmt: skip
    return out
