"""Encodes keys and queries: chunks of keys in a separate launch, and the new tokens of a decode step."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from adamas_kernels.reference import Codebook, padded_dim
from adamas_kernels.triton.apart import (
    BALANCE,
    KEYS,
    MEAN,
    NOISE,
    VALUE_SUM,
    VALUES,
    codes_of_head,
    start_of,
    start_of_rows,
)
from adamas_kernels.triton.apart import EDGE as EDGE_FIELD
from adamas_kernels.triton.coding import (
    EDGE,
    FACTS,
    bucketize,
    encode,
    pack_bytes,
    pack_codes,
    quantize,
    rotate,
    tree_sum,
)

ROWS = 32  # keys per program, at most
NUMBERS = 4096  # of keys that a program holds in registers


@triton.jit
def encode_kernel(
    key_ptr, codes_ptr, scale_ptr, mean_ptr, edge_ptr, balance_ptr,
    key_b, key_h, key_n, codes_b, codes_h, codes_w, codes_n, scale_b, scale_h,
    count,
    HEADS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Encode keys [B, K, N, D]: program (block of rows, head, batch)."""
    head, batch = tl.program_id(1), tl.program_id(2)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    dim = tl.arange(0, P)
    inside = row < count
    base = key_ptr + batch.to(tl.int64) * key_b + head.to(tl.int64) * key_h
    x = tl.load(
        base + row[:, None] * key_n + dim[None, :], mask=inside[:, None] & (dim < D)[None, :], other=0.0
    )
    pair = batch * HEADS + head
    mean = tl.load(mean_ptr + pair * P + dim)[None, :]
    balance = tl.load(balance_ptr + pair * P + dim)[None, :]
    words, scale = encode(x.to(tl.float32), balance, mean, tl.load(edge_ptr + pair), ROWS, P, LOG_P)
    word = tl.arange(0, P // 16)
    base = codes_ptr + batch.to(tl.int64) * codes_b + head.to(tl.int64) * codes_h
    tl.store(base + word[None, :] * codes_w + row[:, None] * codes_n, words, mask=inside[:, None])
    base = scale_ptr + batch.to(tl.int64) * scale_b + head.to(tl.int64) * scale_h
    tl.store(base + row, scale.to(tl.float16), mask=inside)


def encode_keys(keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
    """Write the codes of keys [B, K, N, D] to codes int32 [B, K, N, W] and scales float16 [B, K, N].

    Both may be strided views into a cache; the last dimension of keys and of scales is contiguous.
    """
    batch, heads, count, dim = keys.shape
    size = padded_dim(dim)
    rows = min(ROWS, NUMBERS // size)
    encode_kernel[(triton.cdiv(count, rows), heads, batch)](
        keys, codes, scales, codebook.mean, codebook.edge, codebook.balance,
        *keys.stride()[:3], *codes.stride()[:2], codes.stride(3), codes.stride(2), *scales.stride()[:2],
        count,
        HEADS=heads, D=dim, P=size, LOG_P=size.bit_length() - 1, ROWS=rows,
        enable_fp_fusion=False,  # a fused multiply-add rounds once less than the reference
    )  # fmt: skip


@triton.jit
def append_head(
    key_ptr, value_ptr, keys_ptr, values_ptr, codes_ptr, scale_ptr, value_sum_ptr,
    mean_ptr, edge_ptr, balance_ptr,
    key_n, value_n, keys_n, values_n, codes_w, codes_n, at, row, new,
    ROWS: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    P: tl.constexpr, LOG_P: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Append one KV head's new tokens: keys, values, codes, scales and the sum of values. Pointers are to the
    head. PACKED: codes and scales alone.
    """
    dim, column, word = tl.arange(0, P), tl.arange(0, D_V_PAD), tl.arange(0, P // 16)
    mask = new[:, None] & (dim < D)[None, :]
    x = tl.load(key_ptr + row[:, None] * key_n + dim[None, :], mask=mask, other=0.0)
    if not PACKED:
        tl.store(keys_ptr + at[:, None] * keys_n + dim[None, :], x, mask=mask)
    mean, balance = tl.load(mean_ptr + dim)[None, :], tl.load(balance_ptr + dim)[None, :]
    words, scale = encode(x.to(tl.float32), balance, mean, tl.load(edge_ptr), ROWS, P, LOG_P)
    tl.store(codes_ptr + word[None, :] * codes_w + at[:, None] * codes_n, words, mask=new[:, None])
    tl.store(scale_ptr + at, scale.to(tl.float16), mask=new)
    if not PACKED:
        mask = new[:, None] & (column < D_V)[None, :]
        v = tl.load(value_ptr + row[:, None] * value_n + column[None, :], mask=mask, other=0.0)
        tl.store(values_ptr + at[:, None] * values_n + column[None, :], v, mask=mask)
        before = tl.load(value_sum_ptr + column, mask=column < D_V, other=0.0)
        tl.store(value_sum_ptr + column, before + tl.sum(v.to(tl.float32), axis=0), mask=column < D_V)


@triton.jit
def encode_queries(
    queries, rows, real, mean_ptr, balance_ptr, noise, words_ptr, facts_ptr, scaling, query_edge,
    ROWS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr, MANHATTAN: tl.constexpr,
):  # fmt: skip
    """Encode the queries at the pointers `queries` [ROWS], of one head, into `rows` of words and facts.

    facts float32 [B, H, N, FACTS]: score per unit of rank, offset of the score, sum of the query's integers.
    """
    dim = tl.arange(0, P)
    x = tl.load(queries[:, None] + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    balance = tl.broadcast_to(tl.load(balance_ptr + dim)[None, :], (ROWS, P))
    rotated = rotate(tl.div_rn(x.to(tl.float32), balance), ROWS, P, LOG_P)
    square = tree_sum(rotated * rotated, ROWS, P, LOG_P)
    facts = facts_ptr + rows * FACTS
    if MANHATTAN:
        edge = tl.where(query_edge < 0, EDGE * tl.sqrt_rn(square * (1.0 / P)), query_edge)
        word = tl.arange(0, P // 16)
        words = pack_codes(bucketize(rotated, edge[:, None]), ROWS, P)
        tl.store(words_ptr + rows[:, None] * (P // 16) + word[None, :], words, mask=real[:, None])
        tl.store(facts, tl.full((ROWS,), 1.0, tl.float32), mask=real)
        tl.store(facts + 1, tl.zeros((ROWS,), tl.float32), mask=real)
        tl.store(facts + 2, tl.zeros((ROWS,), tl.float32), mask=real)
    else:
        integers, step = quantize(rotated, ROWS, P)
        word = tl.arange(0, P // 4)
        words = pack_bytes(integers, ROWS, P)
        tl.store(words_ptr + rows[:, None] * (P // 4) + word[None, :], words, mask=real[:, None])
        tl.store(facts, step * scaling, mask=real)
        product = tree_sum(rotated * tl.load(mean_ptr + dim)[None, :], ROWS, P, LOG_P)
        tl.store(facts + 1, scaling * (product - 0.5 * scaling * square * noise), mask=real)
        tl.store(facts + 2, tl.sum(integers, axis=1).to(tl.float32), mask=real)


@triton.jit
def enter_kernel(
    query_ptr, key_ptr, value_ptr,
    keys_ptr, values_ptr, codes_ptr, scale_ptr, value_sum_ptr,
    mean_ptr, edge_ptr, balance_ptr, noise_ptr, length_ptr,
    words_ptr, facts_ptr, apart_ptr,
    query_b, query_h, query_n, key_b, key_h, key_n, value_b, value_h, value_n,
    keys_b, keys_h, keys_n, values_b, values_h, values_n,
    codes_b, codes_h, codes_w, codes_n, scale_b, scale_h,
    scaling, query_edge,
    HEADS: tl.constexpr, GROUP: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr,
    P: tl.constexpr, LOG_P: tl.constexpr, MANHATTAN: tl.constexpr, CHAINED: tl.constexpr,
    APART: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Program (KV head or, after those, query head; batch): append new tokens, or encode queries. PACKED:
    `append_packed` has appended keys and values already.

    CHAINED: started before the previous launch ended. The next launch may start once this one has waited for
    that end, and itself waits for the results of this one.
    """
    part, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    new = row < NEW
    mean = start_of(mean_ptr, apart_ptr, batch, HEADS * P, MEAN, APART)
    balance = start_of(balance_ptr, apart_ptr, batch, HEADS * P, BALANCE, APART)
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()
    if part < HEADS:
        codes, scale, word_step = codes_of_head(
            codes_ptr, scale_ptr, apart_ptr, batch, part, codes_b, codes_h, codes_w, scale_b, scale_h, P,
            APART,
        )  # fmt: skip
        append_head(
            key_ptr + batch * key_b + part * key_h, value_ptr + batch * value_b + part * value_h,
            start_of_rows(keys_ptr, apart_ptr, batch, keys_b, KEYS, APART) + part * keys_h,
            start_of_rows(values_ptr, apart_ptr, batch, values_b, VALUES, APART) + part * values_h,
            codes, scale,
            start_of_rows(value_sum_ptr, apart_ptr, batch, HEADS * D_V, VALUE_SUM, APART) + part * D_V,
            mean + part * P, start_of(edge_ptr, apart_ptr, batch, HEADS, EDGE_FIELD, APART) + part,
            balance + part * P,
            key_n, value_n, keys_n, values_n, word_step, codes_n,
            tl.load(length_ptr + batch).to(tl.int64) + row, row, new, ROWS, D, D_V, D_V_PAD, P, LOG_P,
            PACKED,
        )  # fmt: skip
    else:
        head = part - HEADS
        pair = batch * (HEADS * GROUP) + head
        served = head // GROUP
        noise = start_of(noise_ptr, apart_ptr, batch, HEADS, NOISE, APART)
        encode_queries(
            query_ptr + batch * query_b + head * query_h + row * query_n, pair * NEW + row, new,
            mean + served * P, balance + served * P, tl.load(noise + served),
            words_ptr, facts_ptr, scaling, query_edge,
            ROWS, D, P, LOG_P, MANHATTAN,
        )  # fmt: skip
