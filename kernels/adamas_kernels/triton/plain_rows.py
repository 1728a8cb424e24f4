"""Unpacks rows of a cache in 8 or 4 bits, see `packed.py`, to numbers that many tokens attend to.

The codes of a group are whole numbers, and the rotation is a matrix of signs. So a group is turned back on
tensor cores without rounding, and only then multiplied by its scale.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels import packed
from adamas_kernels.packed import block_of, dim_of, hadamard, rotated
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.packed_rows import GROUP, SCALE_BYTES, ZERO_CODE, unit_of

HALF = tl.constexpr(packed.GROUP // 2)  # codes in the low, or in the high bits of a group's bytes
NUMBERS = 8192  # of a program
WARPS = 8


@triton.jit
def plain_rows_kernel(
    rows_ptr, signs_ptr, centre_ptr, out_ptr, rows_b, rows_h, rows_n, count, unit,
    HEADS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, CENTRED: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Program (ROWS tokens, KV head of a batch). signs: float16 [D, P], the rotation times `1 / unit`.
    centre: float32 [B, K, D], turned back, if CENTRED. The strides of rows are in UNIT bytes, see `unit_of`.
    """
    pair = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real, column = token < count, tl.arange(0, P)
    rows = rows_ptr + (pair // HEADS * rows_b + pair % HEADS * rows_h + token * rows_n) * UNIT
    eight: tl.constexpr = rows_ptr.dtype.element_ty == tl.int8
    width: tl.constexpr = D if eight else D // 2
    total = tl.zeros((ROWS, P), tl.float32)
    for group in tl.static_range(D // GROUP):
        if eight:
            inner = tl.arange(0, GROUP) + group * GROUP
            codes = tl.load(rows[:, None] + inner[None, :], mask=real[:, None], other=0)
            signs = tl.load(signs_ptr + inner[:, None] * P + column[None, :])
            turned = tl.dot(codes.to(tl.float16), signs)
        else:
            half = tl.arange(0, HALF)
            place = half + group * HALF
            both = tl.load(rows[:, None] + place[None, :], mask=real[:, None], other=0).to(tl.int32)
            low, high = half + group * GROUP, half + (group * GROUP + HALF)
            signs = tl.load(signs_ptr + low[:, None] * P + column[None, :])
            turned = tl.dot(((both & 15) - ZERO_CODE).to(tl.float16), signs)
            signs = tl.load(signs_ptr + high[:, None] * P + column[None, :])
            turned = tl.dot(((both >> 4) - ZERO_CODE).to(tl.float16), signs, turned)
        scales = (rows + (width + group * SCALE_BYTES)).to(tl.pointer_type(tl.float16))
        total += turned * tl.load(scales, mask=real, other=0.0).to(tl.float32)[:, None]
    total *= unit
    if CENTRED:
        total += tl.load(centre_ptr + pair * D + column, mask=column < D, other=0.0)[None, :]
    out = out_ptr + (pair * count + token)[:, None] * D + column[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=real[:, None] & (column < D)[None, :])


def plain_rows(rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
    """`packed.read` of packed rows."""
    batch, heads, count = rows.shape[:3]
    dim = dim_of(rows)
    size = next_power(dim)
    tokens = max(16, NUMBERS // size)
    out = rows.new_empty(batch, heads, count, dim, dtype=dtype)
    signs = _signs(dim, rows.device)
    unit = unit_of(rows)
    plain_rows_kernel[(triton.cdiv(count, tokens), batch * heads)](
        rows, signs, signs if centre is None else rotated(centre), out,
        *(stride // unit for stride in rows.stride()[:3]), count, block_of(dim) ** -0.5,
        HEADS=heads, D=dim, P=size, ROWS=tokens, CENTRED=centre is not None, UNIT=unit, num_warps=WARPS,
    )  # fmt: skip
    return out


@cache
def _signs(dim: int, device: torch.device) -> Tensor:
    """The rotation of rows of this many numbers, times the root of its blocks' size, padded with zeros:
    float16 [D, P].
    """
    block = block_of(dim)
    signs = (hadamard(block, device) * block**0.5).round()
    whole = torch.block_diag(*[signs] * (dim // block))
    return torch.nn.functional.pad(whole, (0, next_power(dim) - dim)).half()
