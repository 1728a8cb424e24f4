"""Full attention of one or a few new tokens, at the speed of reading keys and values.

Two launches that do not depend on the length, which stays on the device: programs that each attend to a share
of a KV head's tokens, for all new tokens and query heads of its group at once, and a merge of their parts by
log-sum-exp (flash decoding, https://pytorch.org/blog/flash-decoding/). The first also stores the new keys and
values. So a step can be captured in a CUDA graph once and replayed while the context grows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from adamas_kernels.contract import AnyCache, ApartCache
from adamas_kernels.packed import is_packed
from adamas_kernels.softmax import Softmax
from adamas_kernels.triton.apart import (
    FIELDS,
    KEYS,
    ROOM,
    SKIPPED,
    VALUE_SUM,
    VALUES,
    fact_of,
    start_of_rows,
)
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense_parts import FACTS, join_kernel, scaled, scales_of, store_part
from adamas_kernels.triton.launch import chains, next_power
from adamas_kernels.triton.packed_dense import launch_packed
from adamas_kernels.triton.packed_rows import append_packed, log_turned

BLOCK_BYTES = 16384  # of keys that one program holds at a time
LARGEST_BLOCK = 64  # tokens; twice as many spill registers on the oldest generation
STAGES = 3  # blocks in flight per program
WARPS = 4
PROGRAMS_PER_SM = 1
MOST_SPLITS = 128
LEAST_ROWS = 16  # rows and columns of a product on tensor cores
MOST_ROWS = 64  # queries of one program
QUERY_BYTES = 16384  # of a program's queries, so that their scores and sums fit into registers


@triton.jit
def attend_to_block(
    highest, weight, weighted, q, k, v, seen, scale, cap, PRECISION: tl.constexpr, CAPPED: tl.constexpr
):  # fmt: skip
    """Add a block of tokens, keys [P, BLOCK] and values [BLOCK, D_V_PAD], to the maximum and sum of the
    softmax of queries q [ROWS, P], and to their sum of values.
    """
    v = v.to(q.dtype)
    product = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)
    score = tl.where(seen, scaled(product, scale, cap, CAPPED), LOWEST)
    higher = tl.maximum(highest, tl.max(score, axis=1))
    p = tl.exp2(score - higher[:, None])
    fade = tl.exp2(highest - higher)
    weight = weight * fade + tl.sum(p, axis=1)
    weighted = tl.dot(p.to(v.dtype), v, weighted * fade[:, None], input_precision=PRECISION)
    return higher, weight, weighted


@triton.jit
def load_block(keys, values, at, there, dim, column, keys_n, values_n, D: tl.constexpr, D_V: tl.constexpr):
    """Keys [P, BLOCK] and values [BLOCK, D_V_PAD] of the tokens in these rows, int64; zeros for missing."""
    known = there[None, :] & (dim < D)[:, None]
    k = tl.load(keys + at[None, :] * keys_n + dim[:, None], mask=known, other=0.0)
    inside = there[:, None] & (column < D_V)[None, :]
    return k, tl.load(values + at[:, None] * values_n + column[None, :], mask=inside, other=0.0)


@triton.jit
def dense_kernel(
    query_ptr, key_ptr, value_ptr, keys_ptr, values_ptr, value_sum_ptr, length_ptr, part_ptr, apart_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    keys_b, keys_h, keys_n, values_b, values_h, values_n,
    scale, cap, window, capacity, splits, parts,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, NEW_PAD: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, CHAINED: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SUMMED: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Program (share of the tokens, KV head of a batch, ROWS of its queries); writes part [B, H, N, parts, 2
    + D_V_PAD], of which the first `splits` are its own.

    The first share begins with the new tokens; its first rows also append them to keys, values and, if
    SUMMED, value_sum. scale, cap: see `scaled`. WINDOWED: only the last `window` tokens count, and keys and
    values are rings of `capacity` rows. APART: see `apart.py`; a sequence's first SKIPPED tokens are left to
    `common_kernel`.
    """
    split, pair = tl.program_id(0), tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), pair % HEADS
    row, dim, column = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, P), tl.arange(0, D_V_PAD)
    real = row < GROUP * NEW
    keys = start_of_rows(keys_ptr, apart_ptr, batch, keys_b, KEYS, APART) + head * keys_h
    values = start_of_rows(values_ptr, apart_ptr, batch, values_b, VALUES, APART) + head * values_h
    length = tl.load(length_ptr + batch)
    if APART and WINDOWED:
        capacity = fact_of(apart_ptr, batch, ROOM).to(tl.int32)
    query = query_ptr + batch * query_b + (head * GROUP + row // NEW) * query_h + (row % NEW) * query_n
    q = tl.load(query[:, None] + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, D_V_PAD), tl.float32)
    if split == 0:
        key, value = key_ptr + batch * key_b + head * key_h, value_ptr + batch * value_b + head * value_h
        total = (
            start_of_rows(value_sum_ptr, apart_ptr, batch, HEADS * D_V, VALUE_SUM, APART)
            + head * D_V
            + column
        )
        if NEW == 1:
            k = tl.load(key + dim, mask=dim < D, other=0.0).to(keys_ptr.dtype.element_ty)
            v = tl.load(value + column, mask=column < D_V, other=0.0).to(values_ptr.dtype.element_ty)
            if tl.program_id(2) == 0:
                place = (length % capacity if WINDOWED else length).to(tl.int64)
                tl.store(keys + place * keys_n + dim, k, mask=dim < D)
                tl.store(values + place * values_n + column, v, mask=column < D_V)
                if SUMMED:
                    summed = tl.load(total, mask=column < D_V, other=0.0) + v.to(tl.float32)
                    tl.store(total, summed, mask=column < D_V)
            product = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], axis=1)
            highest = scaled(product, scale, cap, CAPPED)
            weight += 1.0
            weighted += v.to(tl.float32)[None, :]
        else:
            new = tl.arange(0, NEW_PAD)
            at = length + new
            at = (at % capacity if WINDOWED else at).to(tl.int64)
            inside = (new < NEW)[:, None] & (dim < D)[None, :]
            k = tl.load(key + new[:, None] * key_n + dim[None, :], mask=inside, other=0.0)
            k = k.to(keys_ptr.dtype.element_ty)
            shown = (new < NEW)[:, None] & (column < D_V)[None, :]
            v = tl.load(value + new[:, None] * value_n + column[None, :], mask=shown, other=0.0)
            v = v.to(values_ptr.dtype.element_ty)
            if tl.program_id(2) == 0:
                tl.store(keys + at[:, None] * keys_n + dim[None, :], k, mask=inside)
                tl.store(values + at[:, None] * values_n + column[None, :], v, mask=shown)
                if SUMMED:
                    summed = tl.load(total, mask=column < D_V, other=0.0) + tl.sum(v.to(tl.float32), axis=0)
                    tl.store(total, summed, mask=column < D_V)
            seen = new[None, :] <= (row % NEW)[:, None]
            if WINDOWED:
                seen &= new[None, :] + window > (row % NEW)[:, None]
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            score = tl.where(seen, scaled(product, scale, cap, CAPPED), LOWEST)
            highest = tl.max(score, axis=1)
            p = tl.exp2(score - highest[:, None])
            weight = tl.sum(p, axis=1)
            weighted = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    first = 0
    if WINDOWED:
        first = tl.maximum(length + 1 - window, 0)
    elif APART:
        first = fact_of(apart_ptr, batch, SKIPPED).to(tl.int32)
    count = length - first
    share = tl.cdiv(tl.cdiv(count, BLOCK), splits) * BLOCK
    for start in tl.range(split * share, tl.minimum(split * share + share, count), BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        there = at < count
        seen = there[None, :]
        if WINDOWED:
            if NEW > 1:  # later tokens see less
                seen &= (first + at)[None, :] + window > (length + row % NEW)[:, None]
            at += first % capacity
            at = tl.where(at < capacity, at, at - capacity)
        elif APART:
            at += first
        k, v = load_block(keys, values, at.to(tl.int64), there, dim, column, keys_n, values_n, D, D_V)
        highest, weight, weighted = attend_to_block(
            highest, weight, weighted, q, k, v, seen, scale, cap, PRECISION, CAPPED
        )
    if CHAINED:
        gdc_launch_dependents()
    part = part_ptr + ((pair * (GROUP * NEW) + row).to(tl.int64) * parts + split) * (D_V_PAD + FACTS)
    store_part(part, real, highest, weight, weighted, column)


@triton.jit
def common_kernel(
    query_ptr, keys_ptr, values_ptr, part_ptr, apart_ptr,
    query_b, query_h, query_n, keys_h, keys_n, values_h, values_n, scale, cap, batch, splits, parts,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Program (share of the common tokens, KV head, ROWS of its queries in all sequences): attend to the
    tokens that several sequences of a batch share, so that they are read once for all. Writes the last parts
    of each query, see `dense_kernel`; those of sequences that do not share them stay empty.

    apart [batch + 1, FIELDS]: the last row says where the common tokens lie and, as SKIPPED, how many there
    are; a sequence shares them if it skips as many.
    """
    split, head = tl.program_id(0), tl.program_id(1)
    row, dim, column = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, P), tl.arange(0, D_V_PAD)
    sequence, inner = (row // (GROUP * NEW)).to(tl.int64), row % (GROUP * NEW)
    real = sequence < batch
    count = fact_of(apart_ptr, batch, SKIPPED).to(tl.int32)
    shares = tl.load(apart_ptr + sequence * FIELDS + SKIPPED, mask=real, other=0) > 0
    keys = start_of_rows(keys_ptr, apart_ptr, batch, 0, KEYS, True) + head * keys_h
    values = start_of_rows(values_ptr, apart_ptr, batch, 0, VALUES, True) + head * values_h
    query = query_ptr + sequence * query_b + (head * GROUP + inner // NEW) * query_h + (inner % NEW) * query_n
    q = tl.load(query[:, None] + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, D_V_PAD), tl.float32)
    share = tl.cdiv(tl.cdiv(count, BLOCK), splits) * BLOCK
    for start in tl.range(split * share, tl.minimum(split * share + share, count), BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        there = at < count
        k, v = load_block(keys, values, at.to(tl.int64), there, dim, column, keys_n, values_n, D, D_V)
        highest, weight, weighted = attend_to_block(
            highest, weight, weighted, q, k, v, there[None, :], scale, cap, PRECISION, CAPPED
        )
    highest = tl.where(shares, highest, LOWEST)
    weight = tl.where(shares, weight, 0.0)
    weighted = tl.where(shares[:, None], weighted, 0.0)
    of_query = (sequence * HEADS + head) * (GROUP * NEW) + inner
    part = part_ptr + (of_query * parts + parts - splits + split) * (D_V_PAD + FACTS)
    store_part(part, real, highest, weight, weighted, column)


class DenseStep:
    """Appends tokens to a layer and attends fully from them. Keeps one buffer for parts per shape.

    chained: overlap the two launches; None chooses by device.
    """

    def __init__(self, chained: bool | None = None) -> None:
        self._chained = chained
        self._parts: dict[tuple[int, ...], Tensor] = {}

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: AnyCache | ApartCache,
        scaling: float,
        softmax: Softmax,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.dense_step`."""
        queries, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, keys, values))
        batch, heads, new, dim = queries.shape
        kv_heads, dim_v = keys.shape[1], values.shape[3]
        group, size, dim_v_pad = heads // kv_heads, max(16, next_power(dim)), max(16, next_power(dim_v))
        dtype, turned = queries.dtype, None
        if is_packed(cache.keys.dtype):  # its rows are not rounded to the model's format
            assert not isinstance(cache, ApartCache)
            turned = append_packed(queries, keys, values, cache)
        block = max(16, min(LARGEST_BLOCK, next_power(BLOCK_BYTES // (size * dtype.itemsize))))
        most = min(MOST_ROWS, QUERY_BYTES // (max(size, dim_v_pad) * dtype.itemsize))
        rows = max(LEAST_ROWS, min(most, next_power(group * new)))
        window, sinks = softmax.window, softmax.sinks
        apart = isinstance(cache, ApartCache)
        places = cache.places if isinstance(cache, ApartCache) else cache.length
        seen = cache.capacity if window is None else min(cache.capacity, window)
        splits = self._splits(queries.device, batch * kv_heads, seen, block)
        shares = isinstance(cache, ApartCache) and cache.shares and window is None
        common = self._splits(queries.device, kv_heads, seen, block) if shares else 0
        parts = self._part(queries, splits + common, dim_v_pad + FACTS.value)
        precision = "ieee" if dtype == torch.float32 else "tf32"
        scale, cap = scales_of(scaling, softmax)
        chained = chains(queries.device) if self._chained is None else self._chained
        out = torch.empty(batch, heads, new, dim_v, dtype=dtype, device=queries.device)
        lse = torch.empty(batch, heads, new, dtype=torch.float32, device=queries.device)
        if turned is not None:
            launch_packed(
                turned.queries, turned.shift, cache.keys, cache.values, cache.length, parts, dtype, scale,
                cap, splits, rows, dim_v, dim_v_pad, capped=softmax.softcap > 0, chained=chained,
            )  # fmt: skip
        else:
            dense_kernel[(splits, batch * kv_heads, triton.cdiv(group * new, rows))](
                queries, keys, values, cache.keys, cache.values,
                parts if cache.value_sum is None else cache.value_sum, cache.length, parts, places,
                *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
                *cache.keys.stride()[:3], *cache.values.stride()[:3],
                scale, cap, window or 0, cache.capacity, splits, splits + common,
                HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=max(LEAST_ROWS, next_power(new)), ROWS=rows,
                D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad, BLOCK=block, STAGES=STAGES,
                PRECISION=precision, CHAINED=chained and not shares, CAPPED=softmax.softcap > 0,
                WINDOWED=window is not None, SUMMED=cache.value_sum is not None, APART=apart,
                num_warps=WARPS,
            )  # fmt: skip
        if shares:
            rows = max(LEAST_ROWS, min(most, next_power(batch * group * new)))
            common_kernel[(common, kv_heads, triton.cdiv(batch * group * new, rows))](
                queries, cache.keys, cache.values, parts, places,
                *queries.stride()[:3], *cache.keys.stride()[1:3], *cache.values.stride()[1:3],
                scale, cap, batch, common, splits + common,
                HEADS=kv_heads, GROUP=group, NEW=new, ROWS=rows, D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad,
                BLOCK=block, STAGES=STAGES, PRECISION=precision, CAPPED=softmax.softcap > 0, num_warps=WARPS,
            )  # fmt: skip
        join_kernel[(batch * heads * new,)](
            parts, out, lse, lse if sinks is None else sinks, splits + common,
            HEADS=heads, NEW=new, D_V=dim_v, D_V_PAD=dim_v_pad, SPLITS=next_power(splits + common),
            SINKS=sinks is not None, CHAINED=chained and not shares, PACKED=turned is not None,
            LOG_TURNED=log_turned(dim_v),
            num_warps=4, **({"launch_pdl": True} if chained and not shares else {}),
        )  # fmt: skip
        return out, lse

    def _part(self, queries: Tensor, splits: int, size: int) -> Tensor:
        key = (*queries.shape, splits, size)
        if key not in self._parts:
            rows = queries.shape[0] * queries.shape[1] * queries.shape[2]
            self._parts[key] = torch.empty(rows, splits, size, dtype=torch.float32, device=queries.device)
        return self._parts[key]

    @staticmethod
    def _splits(device: torch.device, rows: int, capacity: int, block: int) -> int:
        """The number of shares of each KV head's tokens, for `rows` KV heads."""
        blocks = triton.cdiv(capacity, block)
        if device.type != "cuda":
            return min(blocks, 3)
        units = torch.cuda.get_device_properties(device).multi_processor_count
        return max(1, min(blocks, MOST_SPLITS, PROGRAMS_PER_SM * units // rows))
