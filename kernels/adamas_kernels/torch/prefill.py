"""Dense attention of a chunk of new tokens over everything before it, in memory bounded by the chunk.

A causal mask over (chunk, context) would be the one thing in prefill that grows with both. Here the chunk
attends to blocks of earlier keys without a mask, and to itself with the square causal mask that every fast
kernel has; the parts are merged by their log-sum-exp. The query heads of one KV head lie side by side in the
unmasked parts, so K and V are not repeated for GQA.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from adamas_kernels.dispatch import obstacle
from adamas_kernels.reference import merge

if TYPE_CHECKING:
    from adamas_kernels.cpu.runner import Runner

# Query rows times keys in one call. Bounds one call to a fraction of a second on a CPU, so that Ctrl-C is
# heard.
CPU_BLOCK = 1 << 24


def chunk_attention(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Causal attention of the newest N tokens, queries [B, H, N, D], over keys and values [B, K, S, D], S >=
    N.

    Returns [B, H, N, D] in the queries' dtype.
    """
    heads, new = queries.shape[1:3]
    kv_heads, size = keys.shape[1:3]
    past = size - new
    if new > 1 and queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and find_spec("numba"):
        from adamas_kernels.cpu.prefill import flash_attention, serves

        if serves(queries, keys, values):
            return flash_attention(_runner(torch.get_num_threads()), queries, keys, values, scaling)
    if new == 1:
        return _one_query(queries, keys, values, scaling)
    if past == 0:
        return F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scaling, enable_gqa=heads != kv_heads
        )
    if queries.device.type == "cuda" and queries.itemsize == 2 and _triton_runs(queries.device):
        from adamas_kernels.triton.prefill import split_attention

        return split_attention(queries, keys, values, scaling)
    groups = heads // kv_heads
    own = slice(past, size)
    own_keys, own_values = (x[:, :, own].repeat_interleave(groups, 1) for x in (keys, values))
    out, lse = attention_with_lse(queries, own_keys, own_values, scaling, is_causal=True)
    side_by_side = queries.reshape(queries.shape[0], kv_heads, groups * new, -1)
    out, lse = out.float(), lse.float()
    block = max(256, CPU_BLOCK // (heads * new)) if queries.device.type == "cpu" else past
    for start in range(0, past, block):
        part = slice(start, min(start + block, past))
        earlier, earlier_lse = attention_with_lse(
            side_by_side, keys[:, :, part], values[:, :, part], scaling, is_causal=False
        )
        out, lse = merge(out, lse, earlier.float().reshape(out.shape), earlier_lse.float().reshape(lse.shape))
    return out.to(queries.dtype)


@cache
def _triton_runs(device: torch.device) -> bool:
    return obstacle("triton", device) is None


@cache
def _runner(threads: int) -> Runner:
    from adamas_kernels.cpu.runner import Runner

    return Runner()


def _one_query(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Full attention of one query. On CPUs two matrix products beat SDPA's kernel many times over in
    bfloat16.
    """
    kv_heads = keys.shape[1]
    grouped = queries.reshape(queries.shape[0], kv_heads, -1, queries.shape[-1])
    if queries.device.type == "cpu":
        scores = (grouped @ keys.transpose(-1, -2)).float() * scaling
        out = scores.softmax(-1).to(queries.dtype) @ values
    else:
        out = F.scaled_dot_product_attention(grouped, keys, values, scale=scaling)
    return out.reshape(queries.shape)


def attention_with_lse(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp [B, H, N] of its scores, by the kernel of torch that returns it on this
    device.
    """
    if queries.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, is_causal, scale=scaling
        )
    if queries.device.type != "cuda":
        return _by_definition(queries, keys, values, scaling, is_causal)
    if queries.dtype == torch.float32:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            queries, keys, values, None, True, 0.0, is_causal, scale=scaling
        )
        return out, lse[..., : queries.shape[2]]  # the kernel fills up its last block of rows
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        queries, keys, values, 0.0, is_causal, scale=scaling
    )
    return out, lse


def _by_definition(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """The same where torch has no fused kernel: devices that are neither a CPU nor CUDA's."""
    scores = queries @ keys.transpose(-1, -2) * scaling
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)
