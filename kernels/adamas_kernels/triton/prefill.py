"""Attention of a chunk of new tokens on a GPU: the fastest library kernel for each part, and our own kernel
to join them. Library kernels do not support windows and soft caps, which have our own kernel.

A lower-right causal mask takes cuDNN's attention off its fast path. With no mask over earlier keys and a
square causal mask over the chunk itself, both parts stay on it (docs/performance.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.softmax import Softmax
from adamas_kernels.torch.prefill import attention_with_lse, within_window
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense_parts import LN_2, scaled, scales_of
from adamas_kernels.triton.launch import next_power

CUDNN_CAPABILITY = (9, 0)  # NVIDIA GPUs from Hopper on, where cuDNN is faster than flash attention
CUDNN_LARGEST_DIM = 128
# cuDNN plans each new shape, which takes a tenth of a second or more. So it only gets whole blocks of new
# tokens, and earlier tokens in few sizes: powers of two times this.
CUDNN_BLOCK = 2048
MERGE_ROWS = 16
# Per banded program: numbers of its queries, and of keys at a time; and the most queries and keys.
BANDED_NUMBERS, BANDED_KEYS = 16384, 8192
MOST_ROWS, MOST_KEYS = 128, 64
BANDED_STAGES = 2


@triton.jit
def merge_kernel(
    out_ptr, lse_ptr, other_ptr, other_lse_ptr, out_b, out_h, out_n, other_b, other_h, other_n, new,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Join another part into out [B, H, N, D] and its log-sum-exp, in place; both log-sum-exps are contiguous
    float32 [B, H, N].

    Program (block of new tokens, query head of a batch).
    """
    pair = tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D_PAD)
    real = row < new
    at = pair.to(tl.int64) * new + row
    lse = tl.load(lse_ptr + at, mask=real, other=0.0)
    excess = tl.load(other_lse_ptr + at, mask=real, other=0.0) - lse
    fade = tl.exp(-tl.abs(excess))
    share = tl.where(excess > 0, 1.0, fade) / (1 + fade)  # of the other part
    tl.store(lse_ptr + at, lse + tl.maximum(excess, 0.0) + tl.log(1 + fade), mask=real)
    row = row.to(tl.int64)
    inside = real[:, None] & (column < D)[None, :]
    out = out_ptr + batch * out_b + head * out_h + row[:, None] * out_n + column[None, :]
    other = other_ptr + batch * other_b + head * other_h + row[:, None] * other_n + column[None, :]
    own = tl.load(out, mask=inside, other=0.0).to(tl.float32)
    more = tl.load(other, mask=inside, other=0.0).to(tl.float32)
    tl.store(out, (own + (more - own) * share[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def merge_into(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Join another part of the same softmax, [B, H, N, D] with log-sum-exp float32 [B, H, N], into `out` and
    `lse`, which is contiguous.
    """
    batch, heads, new, dim = out.shape
    merge_kernel[(triton.cdiv(new, MERGE_ROWS), batch * heads)](
        out, lse, other, other_lse.contiguous(), *out.stride()[:3], *other.stride()[:3], new,
        HEADS=heads, D=dim, D_PAD=triton.next_power_of_2(dim), ROWS=MERGE_ROWS,
        num_warps=4,
    )  # fmt: skip


@triton.jit
def banded_kernel(
    query_ptr, key_ptr, value_ptr, out_ptr, lse_ptr, query_b, query_h, query_n, key_b, key_h, key_n,
    value_b, value_h, value_n, out_b, out_h, out_n, scale, cap, window, past, new,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, P: tl.constexpr, D_V: tl.constexpr,
    D_V_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Attention from ROWS new tokens of one query head to the tokens they see (FlashAttention, arXiv
    2205.14135); program (block of new tokens, query head of a batch). scale, cap: see `scaled`; past: tokens
    before the new ones.
    """
    pair = tl.program_id(1)
    batch, head = (pair // HEADS).to(tl.int64), (pair % HEADS).to(tl.int64)
    begin = tl.program_id(0) * ROWS
    row, dim, column = begin + tl.arange(0, ROWS), tl.arange(0, P), tl.arange(0, D_V_PAD)
    real, own = row < new, past + row
    query = query_ptr + batch * query_b + head * query_h + row.to(tl.int64)[:, None] * query_n
    q = tl.load(query + dim[None, :], mask=real[:, None] & (dim < D)[None, :], other=0.0)
    keys, values = key_ptr + batch * key_b + head // GROUP * key_h, value_ptr + batch * value_b
    values += head // GROUP * value_h
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, D_V_PAD), tl.float32)
    first = tl.maximum(past + begin + 1 - window, 0) if WINDOWED else 0
    end = past + tl.minimum(begin + ROWS, new)
    for start in tl.range(first, end, BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        seen = at[None, :] <= own[:, None]
        if WINDOWED:
            seen &= at[None, :] + window > own[:, None]
        there, place = at < end, at.to(tl.int64)
        k = tl.load(
            keys + place[None, :] * key_n + dim[:, None], mask=there[None, :] & (dim < D)[:, None], other=0.0
        )
        v = tl.load(
            values + place[:, None] * value_n + column[None, :],
            mask=there[:, None] & (column < D_V)[None, :], other=0.0,
        )  # fmt: skip
        # A row that has seen nothing yet gets some weight, which fades to zero at the first token it sees.
        score = tl.where(seen, scaled(tl.dot(q, k), scale, cap, CAPPED), LOWEST)
        higher = tl.maximum(highest, tl.max(score, axis=1))
        p = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        weight = weight * fade + tl.sum(p, axis=1)
        weighted = tl.dot(p.to(v.dtype), v, weighted * fade[:, None])
        highest = higher
    out = out_ptr + batch * out_b + head * out_h + row.to(tl.int64)[:, None] * out_n + column[None, :]
    result = (weighted / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out, result, mask=real[:, None] & (column < D_V)[None, :])
    tl.store(lse_ptr + pair.to(tl.int64) * new + row, highest * LN_2 + tl.log(weight), mask=real)


def banded_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """`Backend.prefill` for sequences of one length, without learned sinks."""
    batch, heads, new, dim = queries.shape
    dim_v, size, dim_v_pad = values.shape[3], max(16, next_power(dim)), max(16, next_power(values.shape[3]))
    widest = max(size, dim_v_pad)
    rows, block = min(MOST_ROWS, BANDED_NUMBERS // widest), min(MOST_KEYS, BANDED_KEYS // widest)
    out = queries.new_empty(batch, new, heads, dim_v).transpose(1, 2)
    lse = torch.empty(batch, heads, new, dtype=torch.float32, device=queries.device)
    banded_kernel[(triton.cdiv(new, rows), batch * heads)](
        queries, keys, values, out, lse, *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        *out.stride()[:3], *scales_of(scaling, softmax), softmax.window or 0, keys.shape[2] - new, new,
        HEADS=heads, GROUP=heads // keys.shape[1], D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad, ROWS=rows,
        BLOCK=block, STAGES=BANDED_STAGES, CAPPED=softmax.softcap > 0, WINDOWED=softmax.window is not None,
        num_warps=8 if rows == MOST_ROWS else 4,
    )  # fmt: skip
    return out, lse


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """`Backend.prefill` for sequences of one length."""
    keys, values = within_window(keys, values, queries, softmax)
    if softmax.banded(keys.shape[2]):
        out, lse = banded_attention(queries, keys, values, scaling, softmax)
    else:
        out, lse = split_attention(queries, keys, values, scaling)
    return softmax.with_sinks(out, lse)


def split_attention(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention to all tokens, for sequences of one length."""
    batch, heads, new, dim = queries.shape
    kv_heads, size = keys.shape[1:3]
    past = size - new
    cudnn = _cudnn_serves(queries)
    own_keys, own_values = keys[:, :, past:], values[:, :, past:]
    if not cudnn and heads != kv_heads:
        own_keys, own_values = (x.repeat_interleave(heads // kv_heads, 1) for x in (own_keys, own_values))
    out, lse = (_cudnn if cudnn else attention_with_lse)(queries, own_keys, own_values, scaling, True)
    lse = lse.contiguous()
    # The query heads of one KV head become rows of one head: the same, as all rows see all keys here.
    rows = queries.reshape(batch, kv_heads, -1, dim)
    for start, end in blocks_of(past) if cudnn else [(0, past)] if past else []:
        attend = _cudnn if cudnn and (end - start) % CUDNN_BLOCK == 0 else attention_with_lse
        part = slice(start, end)
        other, other_lse = attend(rows, keys[:, :, part], values[:, :, part], scaling, False)
        merge_into(out, lse, other.reshape(out.shape), other_lse.reshape(lse.shape))
    return out, lse


def blocks_of(past: int) -> list[tuple[int, int]]:
    """The starts and ends of blocks of earlier tokens: CUDNN_BLOCK times falling powers of two, then the
    rest.
    """
    blocks, start = [], 0
    while start < past:
        whole = (past - start) // CUDNN_BLOCK
        end = start + (CUDNN_BLOCK << (whole.bit_length() - 1)) if whole else past
        blocks.append((start, end))
        start = end
    return blocks


def _cudnn_serves(queries: Tensor) -> bool:
    new, dim = queries.shape[2:]
    if torch.version.hip is not None or new % CUDNN_BLOCK or dim > CUDNN_LARGEST_DIM:
        return False
    return torch.cuda.get_device_capability(queries.device) >= CUDNN_CAPABILITY


def _cudnn(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        queries, keys, values, None, True, 0.0, causal, False, scale=scaling
    )
    return out, lse.reshape(queries.shape[:3])
