"""Attention of a chunk of new tokens on a GPU: the fastest library kernel for each part, and one of our own
that joins them.

A lower-right causal mask takes cuDNN's attention off its fast path. Without a mask over earlier keys, and
with the square causal one over the chunk itself, both parts stay on it (docs/performance.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.torch.prefill import attention_with_lse

CUDNN_CAPABILITY = (9, 0)  # NVIDIA GPUs from Hopper on, where cuDNN is faster than flash attention
CUDNN_LARGEST_DIM = 128
# cuDNN plans each shape anew, which takes a tenth of a second and more. So it gets whole blocks of new
# tokens, and earlier ones in as few sizes as do: each a power of two times this.
CUDNN_BLOCK = 2048
MERGE_ROWS = 16


@triton.jit
def merge_kernel(
    out_ptr, lse_ptr, other_ptr, other_lse_ptr, out_b, out_h, out_n, other_b, other_h, other_n, new,
    HEADS: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Join another part into out [B, H, N, D] and its log-sum-exp, in place; both log-sum-exps are float32
    [B, H, N], contiguous.

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


def split_attention(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """`Backend.prefill` for sequences of one length."""
    batch, heads, new, dim = queries.shape
    kv_heads, size = keys.shape[1:3]
    past = size - new
    cudnn = _cudnn_serves(queries)
    own_keys, own_values = keys[:, :, past:], values[:, :, past:]
    if not cudnn and heads != kv_heads:
        own_keys, own_values = (x.repeat_interleave(heads // kv_heads, 1) for x in (own_keys, own_values))
    out, lse = (_cudnn if cudnn else attention_with_lse)(queries, own_keys, own_values, scaling, True)
    lse = lse.contiguous()
    # The query heads of one KV head as more rows of one: where all rows see all keys, that is the same.
    rows = queries.reshape(batch, kv_heads, -1, dim)
    for start, end in blocks_of(past) if cudnn else [(0, past)] if past else []:
        attend = _cudnn if cudnn and (end - start) % CUDNN_BLOCK == 0 else attention_with_lse
        part = slice(start, end)
        other, other_lse = attend(rows, keys[:, :, part], values[:, :, part], scaling, False)
        merge_into(out, lse, other.reshape(out.shape), other_lse.reshape(lse.shape))
    return out, lse


def blocks_of(past: int) -> list[tuple[int, int]]:
    """Where the blocks of earlier tokens start and end: CUDNN_BLOCK times falling powers of two, and the
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
