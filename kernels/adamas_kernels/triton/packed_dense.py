"""Full attention of one or a few new tokens to packed rows, see `packed.py`.

Codes are small whole numbers, so bfloat16 holds them exactly: tensor cores multiply them as they are, one
group at a time, and a group's scale multiplies the sums of its keys' codes, or the weights of its values. The
other factor, a query or a weight, is a sum of a few bfloat16 numbers, as many as the model's own format is
worth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense_parts import FACTS, scaled, store_columns, store_facts
from adamas_kernels.triton.launch import has_ptx
from adamas_kernels.triton.packed_rows import GROUP, ZERO_CODE, unit_of

BLOCK = 64  # tokens that a program holds at a time
STAGES = 3  # blocks in flight per program
WARPS = 4
TERMS = {torch.float32: 3}  # bfloat16 numbers whose sum is a query or a weight, by the model's format
FEW_TERMS = 2  # for 16-bit formats


@triton.constexpr_function
def halves(kind):
    """Into how many parts a group's codes are divided: 4-bit codes are in the low and high bits of bytes."""
    return 1 if kind == tl.int8 else 2


@triton.jit
def load_codes(rows, there, PART: tl.constexpr, ALONG: tl.constexpr, SHORT: tl.constexpr):
    """Part PART of the codes of rows that begin at the pointers `rows` [N], as SHORT: [codes, N] with ALONG
    0, [N, codes] with ALONG 1. What is not `there` has no meaning, but is finite.
    """
    few: tl.constexpr = halves(rows.dtype.element_ty)
    size: tl.constexpr = GROUP // few
    inner = PART // few * size + tl.arange(0, size)
    if ALONG == 0:
        found = tl.load(rows[None, :] + inner[:, None], mask=there[None, :], other=0)
    else:
        found = tl.load(rows[:, None] + inner[None, :], mask=there[:, None], other=0)
    if few == 2:
        found = (((found.to(tl.int32) >> (PART % 2 * 4)) & 15) - ZERO_CODE).to(tl.int8)
    return found.to(SHORT)


@triton.jit
def load_scales(rows, there, D: tl.constexpr):
    """The scales of each row's groups, float32 [N] each; zeros where not `there`. Two of them come as one
    word, if their number is even: shorter loads cannot be under way while others are computed with.
    """
    width: tl.constexpr = D // halves(rows.dtype.element_ty)
    found = ()
    if D // GROUP % 2 == 0:
        words = (rows + width).to(tl.pointer_type(tl.int32))
        for pair in tl.static_range(D // GROUP // 2):
            both = tl.load(words + pair, mask=there, other=0)
            for half in tl.static_range(2):
                one = (both >> (16 * half)).to(tl.int16).to(tl.float16, bitcast=True)
                found += (one.to(tl.float32),)  # type: ignore[assignment]
    else:
        scales = (rows + width).to(tl.pointer_type(tl.float16))
        for group in tl.static_range(D // GROUP):
            found += (tl.load(scales + group, mask=there, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    return found


@triton.jit
def terms_of(x, TERMS: tl.constexpr, SHORT: tl.constexpr):
    """TERMS numbers of the format SHORT, whose sum is x, float32."""
    found = ()
    for term in tl.static_range(TERMS):
        near = x.to(SHORT)
        found += (near,)  # type: ignore[assignment]
        if term + 1 < TERMS:
            x -= near.to(tl.float32)
    return found


@triton.jit
def multiplied(terms, codes, sums, FIRST: tl.constexpr, TERMS: tl.constexpr):
    """sums + the sum of TERMS terms, from the FIRST, times codes."""
    for term in tl.static_range(TERMS):
        sums = tl.dot(terms[FIRST + term], codes, sums, input_precision="ieee")
    return sums


@triton.jit
def packed_dense_kernel(
    query_ptr, keys_ptr, values_ptr, length_ptr, part_ptr, shift_ptr,
    keys_b, keys_h, keys_n, values_b, values_h, values_n, scale, cap, splits,
    HEADS: tl.constexpr, GROUPED: tl.constexpr, NEW: tl.constexpr, ROWS: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, D_V_PAD: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    UNIT: tl.constexpr, UNIT_V: tl.constexpr, SHORT: tl.constexpr, TERMS: tl.constexpr,
    CHAINED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Program (share of the tokens, KV head of a batch, ROWS of its queries); writes part [B, H, N, splits, 2
    + D_V_PAD], see `dense_parts.py`.

    query: turned, float32 [B, H, N, D]; shift: float32 [B, H, N], added to products; see `packed_rows.py`.
    New tokens are in their rows already. GROUPED: query heads of a KV head. The strides of keys are in UNIT
    bytes and those of values in UNIT_V, see `unit_of`. SHORT: the format in which tensor cores multiply.
    """
    split, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = pair // HEADS, pair % HEADS
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = row < GROUPED * NEW
    line = pair * (GROUPED * NEW) + row
    keys = keys_ptr + (batch * keys_b + head * keys_h) * UNIT
    values = values_ptr + (batch * values_b + head * values_h) * UNIT_V
    few: tl.constexpr = halves(keys_ptr.dtype.element_ty)
    few_v: tl.constexpr = halves(values_ptr.dtype.element_ty)
    size: tl.constexpr = GROUP // few
    size_v: tl.constexpr = GROUP // few_v
    q, weighted = (), ()
    for part in tl.static_range(D // size):
        inner = part * size + tl.arange(0, size)
        of_part = tl.load(query_ptr + line[:, None] * D + inner[None, :], mask=real[:, None], other=0.0)
        q += terms_of(of_part, TERMS, SHORT)
    for _ in tl.static_range(D_V // size_v):
        weighted += (tl.zeros((ROWS, size_v), tl.float32),)  # type: ignore[assignment]
    shift = tl.load(shift_ptr + line, mask=real, other=0.0)[:, None]
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    length = tl.load(length_ptr + batch)
    count = length + NEW
    share = tl.cdiv(tl.cdiv(count, BLOCK), splits) * BLOCK
    for start in tl.range(split * share, tl.minimum(split * share + share, count), BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        there = at < count
        key_rows = keys + at.to(tl.int64) * keys_n * UNIT
        value_rows = values + at.to(tl.int64) * values_n * UNIT_V
        key_scales, value_scales = load_scales(key_rows, there, D), load_scales(value_rows, there, D_V)
        product = tl.zeros((ROWS, BLOCK), tl.float32) + shift
        for group in tl.static_range(D // GROUP):
            sums = tl.zeros((ROWS, BLOCK), tl.float32)
            for part in tl.static_range(group * few, group * few + few):
                codes = load_codes(key_rows, there, part, 0, SHORT)
                sums = multiplied(q, codes, sums, part * TERMS, TERMS)
            product += sums * key_scales[group][None, :]
        seen = there[None, :]
        if NEW > 1:
            seen &= at[None, :] <= (length + row % NEW)[:, None]
        score = tl.where(seen, scaled(product, scale, cap, CAPPED), LOWEST)
        higher = tl.maximum(highest, tl.max(score, axis=1))
        p = tl.where(seen, tl.exp2(score - higher[:, None]), 0.0)
        fade = tl.exp2(highest - higher)
        weight = weight * fade + tl.sum(p, axis=1)
        updated = ()
        for group in tl.static_range(D_V // GROUP):
            factor = terms_of(p * value_scales[group][None, :], TERMS, SHORT)
            for part in tl.static_range(group * few_v, group * few_v + few_v):
                codes = load_codes(value_rows, there, part, 1, SHORT)
                faded = weighted[part] * fade[:, None]
                updated += (multiplied(factor, codes, faded, 0, TERMS),)  # type: ignore[assignment]
        highest, weighted = higher, updated
    if CHAINED:
        gdc_launch_dependents()
    place = part_ptr + (line * splits + split) * (D_V_PAD + FACTS)
    for part in tl.static_range(D_V // size_v):
        column = part * size_v + tl.arange(0, size_v)
        store_columns(place, real, weighted[part], column)
    store_facts(place, real, highest, weight)


def launch_packed(
    queries: Tensor, shift: Tensor, keys: Tensor, values: Tensor, length: Tensor, parts: Tensor,
    dtype: torch.dtype, scale: float, cap: float, splits: int, rows: int, dim_v: int, dim_v_pad: int,
    *, capped: bool, chained: bool,
) -> None:  # fmt: skip
    """Write the parts of a step, see the kernel. keys, values: packed rows [B, K, S, R]; dtype: the model's
    format.
    """
    batch, heads, new, dim = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    units = [unit_of(x) for x in (keys, values)]
    strides = [x.stride(at) // unit for x, unit in zip((keys, values), units, strict=True) for at in range(3)]
    packed_dense_kernel[(splits, batch * kv_heads, triton.cdiv(group * new, rows))](
        queries, keys, values, length, parts, shift, *strides, scale, cap, splits,
        HEADS=kv_heads, GROUPED=group, NEW=new, ROWS=rows, D=dim, D_V=dim_v, D_V_PAD=dim_v_pad, BLOCK=BLOCK,
        STAGES=STAGES, UNIT=units[0], UNIT_V=units[1],
        SHORT=tl.bfloat16 if has_ptx() else tl.float32,  # which the interpreter cannot multiply
        TERMS=TERMS.get(dtype, FEW_TERMS), CHAINED=chained, CAPPED=capped, num_warps=WARPS,
    )  # fmt: skip
