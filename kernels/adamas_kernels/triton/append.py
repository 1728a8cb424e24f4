"""Stores new keys and values before any of them is attended to, for steps that take several tokens of one
sequence as rows of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.contract import ApartCache
from adamas_kernels.triton.apart import FIELDS, KEYS, ROOM, VALUE_SUM, VALUES, fact_of, start_of_rows
from adamas_kernels.triton.launch import next_power

WARPS = 2


@triton.jit
def append_kernel(
    key_ptr, value_ptr, keys_ptr, values_ptr, value_sum_ptr, length_ptr, apart_ptr,
    key_b, key_h, value_b, value_h, keys_h, keys_n, values_h, values_n, batch,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    ROWS: tl.constexpr, WINDOWED: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Program (row, KV head): store the row's key and value after its sequence's first `length` tokens. The
    first of a sequence's rows, which are neighbours, adds the values of all of them to its value_sum, in
    their order.

    ROWS: at least the rows. WINDOWED: keys and values are rings. See `dense_kernel`.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim, column, every = tl.arange(0, D_PAD), tl.arange(0, D_V_PAD), tl.arange(0, ROWS)
    keys = start_of_rows(keys_ptr, apart_ptr, row, 0, KEYS, True) + head * keys_h
    values = start_of_rows(values_ptr, apart_ptr, row, 0, VALUES, True) + head * values_h
    place = tl.load(length_ptr + row)
    if WINDOWED:
        place = place % fact_of(apart_ptr, row, ROOM).to(tl.int32)
    place = place.to(tl.int64)
    k = tl.load(key_ptr + row * key_b + head * key_h + dim, mask=dim < D, other=0.0)
    v = tl.load(value_ptr + row * value_b + head * value_h + column, mask=column < D_V, other=0.0)
    tl.store(keys + place * keys_n + dim, k.to(keys_ptr.dtype.element_ty), mask=dim < D)
    tl.store(values + place * values_n + column, v.to(values_ptr.dtype.element_ty), mask=column < D_V)
    if SUMMED:
        mine = fact_of(apart_ptr, row, VALUE_SUM)
        same = tl.load(apart_ptr + every * FIELDS + VALUE_SUM, mask=every < batch, other=mine - 1) == mine
        if tl.sum((same & (every < row)).to(tl.int32), axis=0) == 0:
            at = value_ptr + every[:, None] * value_b + head * value_h + column[None, :]
            every_v = tl.load(at, mask=same[:, None] & (column < D_V)[None, :], other=0.0)
            every_v = every_v.to(values_ptr.dtype.element_ty).to(tl.float32)
            total = start_of_rows(value_sum_ptr, apart_ptr, row, 0, VALUE_SUM, True) + head * D_V + column
            summed = tl.load(total, mask=column < D_V, other=0.0) + tl.sum(every_v, axis=0)
            tl.store(total, summed, mask=column < D_V)


def append(keys: Tensor, values: Tensor, cache: ApartCache, *, windowed: bool) -> None:
    """Store keys and values [B, K, 1, D] of rows of which neighbours may belong to one sequence, as
    `Backend.dense_step` does of others. Changes: keys, values and value_sum.
    """
    batch, heads, _, dim = keys.shape
    dim_v = values.shape[3]
    append_kernel[(batch, heads)](
        keys, values, cache.keys, cache.values, keys if cache.value_sum is None else cache.value_sum,
        cache.length, cache.places, *keys.stride()[:2], *values.stride()[:2], *cache.keys.stride()[1:3],
        *cache.values.stride()[1:3], batch,
        HEADS=heads, D=dim, D_PAD=next_power(dim), D_V=dim_v, D_V_PAD=next_power(dim_v),
        ROWS=next_power(batch), WINDOWED=windowed, SUMMED=cache.value_sum is not None, num_warps=WARPS,
    )  # fmt: skip
