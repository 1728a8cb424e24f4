"""Rows of a cache in any format, see `packed.py`: read as numbers, and written for new tokens.

Packed rows have rotated numbers, keys relative to a centre. A rotation changes no product of a query and a
key, so a step turns its queries instead of all keys, adds the product with the centre to each score, and
turns its outputs back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels import packed
from adamas_kernels.contract import AnyCache
from adamas_kernels.triton.coding import ROUNDER, rotate
from adamas_kernels.triton.launch import next_power

GROUP = tl.constexpr(packed.GROUP)
SCALE_BYTES = tl.constexpr(packed.SCALE_BYTES)
LONGEST_LOAD = 16  # bytes
LEAST_SCALE = tl.constexpr(packed.LEAST_SCALE)
ZERO_CODE = tl.constexpr(packed.ZERO_CODE)
LARGEST_8, LARGEST_4 = (tl.constexpr(float(packed.LARGEST[kind])) for kind in (torch.int8, torch.uint8))


@triton.jit
def load_numbers(rows, column, inside, D: tl.constexpr):
    """Numbers in some columns of rows of D numbers, which begin at the pointers `rows`; zeros where not
    `inside`. Those of packed rows are float32, still rotated and relative to the centre. Shapes broadcast.
    """
    kind: tl.constexpr = rows.dtype.element_ty
    if kind == tl.int8:
        scales = (rows + (D + column // GROUP * SCALE_BYTES)).to(tl.pointer_type(tl.float16))
        codes = tl.load(rows + column, mask=inside, other=0)
        found = codes.to(tl.float32) * tl.load(scales, mask=inside, other=0.0).to(tl.float32)
    elif kind == tl.uint8:
        scales = (rows + (D // 2 + column // GROUP * SCALE_BYTES)).to(tl.pointer_type(tl.float16))
        both = tl.load(rows + (column // GROUP * (GROUP // 2) + column % (GROUP // 2)), mask=inside, other=0)
        codes = ((both.to(tl.int32) >> (column % GROUP // (GROUP // 2) * 4)) & 15) - ZERO_CODE
        found = codes.to(tl.float32) * tl.load(scales, mask=inside, other=0.0).to(tl.float32)
    else:
        found = tl.load(rows + column, mask=inside, other=0.0)
    return found


@triton.jit
def turn(x, ROWS: tl.constexpr, P: tl.constexpr, LOG_TURNED: tl.constexpr):
    """`packed.rotated` of float32 [ROWS, P]: blocks of 2^LOG_TURNED numbers are rotated."""
    size: tl.constexpr = 1 << LOG_TURNED
    blocks = tl.reshape(x, (ROWS * (P // size), size))
    return tl.reshape(rotate(blocks, ROWS * (P // size), size, LOG_TURNED), (ROWS, P))


@triton.jit
def store_packed(rows, x, real, ROWS: tl.constexpr, D: tl.constexpr, P: tl.constexpr):
    """`packed.pack` of float32 [ROWS, P] into the rows that begin at the pointers `rows` [ROWS], where
    `real`. Returns the numbers that can be read there.
    """
    kind: tl.constexpr = rows.dtype.element_ty
    count: tl.constexpr = P // GROUP
    largest: tl.constexpr = LARGEST_8 if kind == tl.int8 else LARGEST_4
    groups = tl.reshape(x, (ROWS, count, GROUP))
    most = tl.max(tl.abs(groups), axis=2)
    unit = tl.div_rn(most, tl.full((ROWS, count), largest, tl.float32))
    scale = tl.maximum(unit, LEAST_SCALE).to(tl.float16)
    unit = tl.broadcast_to(scale.to(tl.float32)[:, :, None], (ROWS, count, GROUP))
    codes = (tl.div_rn(groups, unit) + ROUNDER) - ROUNDER
    codes = tl.minimum(tl.maximum(codes, -largest), largest)
    width: tl.constexpr = D if kind == tl.int8 else D // 2
    if kind == tl.int8:
        column = tl.arange(0, P)
        stored = tl.reshape(codes, (ROWS, P)).to(tl.int8)
    else:
        column = tl.arange(0, P // 2)
        halves = tl.reshape(codes.to(tl.int32) + ZERO_CODE, (ROWS, count, 2, GROUP // 2))
        low, high = tl.split(tl.permute(halves, (0, 1, 3, 2)))
        stored = tl.reshape(low | (high << 4), (ROWS, P // 2)).to(tl.uint8)
    tl.store(rows[:, None] + column[None, :], stored, mask=real[:, None] & (column < width)[None, :])
    group = tl.arange(0, count)
    scales = (rows[:, None] + (width + group * SCALE_BYTES)[None, :]).to(tl.pointer_type(tl.float16))
    tl.store(scales, scale, mask=real[:, None] & (group < D // GROUP)[None, :])
    return tl.reshape(codes * unit, (ROWS, P))


@triton.jit
def load_turned(
    pointers, real,
    ROWS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, LOG_TURNED: tl.constexpr,
):  # fmt: skip
    """Rows of D plain numbers at these pointers [ROWS], rotated: float32 [ROWS, P]."""
    dim = tl.arange(0, P)
    x = tl.load(pointers[:, None] + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    return turn(x.to(tl.float32), ROWS, P, LOG_TURNED)


@triton.jit
def turn_kernel(
    query_ptr, key_ptr, value_ptr, keys_ptr, values_ptr, value_sum_ptr, centre_ptr, length_ptr,
    turned_ptr, shift_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    keys_b, keys_h, keys_n, values_b, values_h, values_n,
    HEADS: tl.constexpr, GROUP_SIZE: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, LOG_TURNED: tl.constexpr,
    D_V: tl.constexpr, P_V: tl.constexpr, LOG_TURNED_V: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Program (KV head or, after those, query head; batch): append new tokens to packed rows and, if SUMMED,
    to value_sum, or rotate queries into turned float32 [B, H, N, D], with their products with the keys'
    centre in shift float32 [B, H, N].
    """
    part, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, dim = tl.arange(0, ROWS), tl.arange(0, P)
    new = row < NEW
    if part < HEADS:
        pair = batch * HEADS + part
        at = tl.load(length_ptr + batch).to(tl.int64) + row
        k = load_turned(key_ptr + batch * key_b + part * key_h + row * key_n, new, ROWS, D, P, LOG_TURNED)
        centre = tl.load(centre_ptr + pair * D + dim, mask=dim < D, other=0.0)
        keys = keys_ptr + batch * keys_b + part * keys_h + at * keys_n
        store_packed(keys, k - centre[None, :], new, ROWS, D, P)
        v = load_turned(
            value_ptr + batch * value_b + part * value_h + row * value_n, new, ROWS, D_V, P_V, LOG_TURNED_V
        )
        values = values_ptr + batch * values_b + part * values_h + at * values_n
        kept = store_packed(values, v, new, ROWS, D_V, P_V)
        if SUMMED:
            column = tl.arange(0, P_V)
            total = value_sum_ptr + pair * D_V + column
            before = tl.load(total, mask=column < D_V, other=0.0)
            tl.store(total, before + tl.sum(kept, axis=0), mask=column < D_V)
    else:
        head = part - HEADS
        query = query_ptr + batch * query_b + head * query_h + row * query_n
        q = load_turned(query, new, ROWS, D, P, LOG_TURNED)
        centre_at = centre_ptr + (batch * HEADS + head // GROUP_SIZE) * D
        centre = tl.load(centre_at + dim, mask=dim < D, other=0.0)
        line = (batch * (HEADS * GROUP_SIZE) + head) * NEW + row
        tl.store(shift_ptr + line, tl.sum(q * centre[None, :], axis=1), mask=new)
        turned = turned_ptr + line[:, None] * D + dim[None, :]
        tl.store(turned, q, mask=new[:, None] & (dim < D)[None, :])


@dataclass(frozen=True)
class Turned:
    """Queries as a step over packed rows needs them. queries: float32 [B, H, N, D], rotated; shift: float32
    [B, H, N], their products with the centre.
    """

    queries: Tensor
    shift: Tensor


def unit_of(rows: Tensor) -> int:
    """Of how many bytes the places of packed rows are multiples, up to a load's. Kernels take strides in this
    unit as a constant, so that the compiler knows how many bytes it may load at once.
    """
    return math.gcd(LONGEST_LOAD, rows.data_ptr(), *rows.stride()[:3])


def log_turned(dim: int) -> int:
    """The base-2 logarithm of the numbers that are rotated together in a head of this size."""
    return packed.block_of(dim).bit_length() - 1


def append_packed(queries: Tensor, keys: Tensor, values: Tensor, cache: AnyCache) -> Turned:
    """Append keys and values [B, K, N, D] to a cache of packed rows and to its sum of values, and turn
    queries [B, H, N, D].
    """
    batch, heads, new, dim = queries.shape
    kv_heads, dim_v = keys.shape[1], values.shape[3]
    assert cache.centre is not None
    turned = torch.empty(batch, heads, new, dim, dtype=torch.float32, device=queries.device)
    shift = torch.empty(batch, heads, new, dtype=torch.float32, device=queries.device)
    rows, size, size_v = next_power(new), next_power(dim), next_power(dim_v)
    turn_kernel[(kv_heads + heads, batch)](
        queries, keys, values, cache.keys, cache.values,
        shift if cache.value_sum is None else cache.value_sum, cache.centre, cache.length, turned, shift,
        *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        *cache.keys.stride()[:3], *cache.values.stride()[:3],
        HEADS=kv_heads, GROUP_SIZE=heads // kv_heads, NEW=new, ROWS=rows, D=dim, P=size,
        LOG_TURNED=log_turned(dim), D_V=dim_v, P_V=size_v, LOG_TURNED_V=log_turned(dim_v),
        SUMMED=cache.value_sum is not None, num_warps=max(1, min(8, rows * size // 256)),
        enable_fp_fusion=False,  # a fused multiply-add rounds once less than the specification
    )  # fmt: skip
    return Turned(turned, shift)
