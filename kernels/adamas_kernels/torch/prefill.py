"""Dense attention of a chunk of new tokens over everything before it, in memory bounded by the chunk.

A causal mask over (chunk, context) would be the only thing in prefill that grows with both. Instead, the
chunk attends to blocks of earlier keys without a mask, and to itself with the square causal mask that every
fast kernel has; the parts are merged by their log-sum-exp. In the unmasked parts, the query heads of one KV
head lie side by side, so K and V are not repeated for GQA. Those kernels do not support windows and soft
caps, which are computed by definition, some queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from adamas_kernels.reference import merge
from adamas_kernels.softmax import PLAIN, Softmax

# Query rows times keys in one call. Keeps one call to a fraction of a second on a CPU, so that Ctrl-C works,
# and on all devices bounds the memory of scores.
BLOCK = 1 << 24


Attend = Callable[[Tensor, Tensor, Tensor, float, Softmax], tuple[Tensor, Tensor]]


def by_length(
    attend: Attend,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    lengths: Tensor | None,
    softmax: Softmax,
) -> tuple[Tensor, Tensor]:
    """`Backend.prefill` from attention over sequences of one length: all at once if lengths are equal, else
    one by one.
    """
    if lengths is None:
        return attend(queries, keys, values, scaling, softmax)
    ends = [length + queries.shape[2] for length in lengths.tolist()]
    if len(set(ends)) == 1:
        return attend(queries, keys[:, :, : ends[0]], values[:, :, : ends[0]], scaling, softmax)
    sequences = zip(queries.split(1), keys.split(1), values.split(1), ends, strict=True)
    return joined(attend(q, k[:, :, :end], v[:, :, :end], scaling, softmax) for q, k, v, end in sequences)


def joined(results: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join the outputs and log-sum-exps of sequences into a batch."""
    outs, lses = zip(*results, strict=True)
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """`Backend.prefill` for sequences of one length."""
    attend = _banded if softmax.banded(keys.shape[2]) else _in_parts
    return softmax.with_sinks(
        *attend(queries, *within_window(keys, values, queries, softmax), scaling, softmax)
    )


def within_window(keys: Tensor, values: Tensor, queries: Tensor, softmax: Softmax) -> tuple[Tensor, Tensor]:
    """The keys and values, of [B, K, S, D], that any of the newest tokens, queries [B, H, N, D], sees."""
    first = softmax.first_seen(keys.shape[2] - queries.shape[2])
    return keys[:, :, first:], values[:, :, first:]


def _banded(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Attention by definition, some queries at a time, over the tokens they see."""
    batch, heads, new = queries.shape[:3]
    kv_heads, size = keys.shape[1:3]
    past = size - new
    count = max(1, BLOCK // (heads * min(size, softmax.window or size)))
    outs, lses = [], []
    for start in range(0, new, count):
        part = queries[:, :, start : start + count]
        first, end = softmax.first_seen(past + start), past + start + part.shape[2]
        rows = part.reshape(batch, kv_heads, -1, part.shape[-1])
        scores = (rows @ keys[:, :, first:end].transpose(-1, -2)).float() * scaling
        scores = softmax.capped(scores).view(batch, heads, part.shape[2], -1)
        distance = torch.arange(past + start, end, device=keys.device).unsqueeze(1)
        distance = distance - torch.arange(first, end, device=keys.device)
        hidden = (distance < 0) | (distance >= (softmax.window or size))
        scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.softmax(-1).to(values.dtype).view(batch, kv_heads, -1, end - first)
        outs.append((weights @ values[:, :, first:end]).view(batch, heads, part.shape[2], -1))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _in_parts(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Attention to all tokens with torch's fused kernels."""
    heads, new = queries.shape[1:3]
    kv_heads, size = keys.shape[1:3]
    past = size - new
    if new == 1:
        return _one_query(queries, keys, values, scaling)
    groups = heads // kv_heads
    own_keys, own_values = keys[:, :, past:], values[:, :, past:]
    if groups > 1:
        own_keys, own_values = (x.repeat_interleave(groups, 1) for x in (own_keys, own_values))
    out, lse = attention_with_lse(queries, own_keys, own_values, scaling, is_causal=True)
    if past == 0:
        return out, lse.float()
    side_by_side = queries.reshape(queries.shape[0], kv_heads, groups * new, -1)
    out, lse = out.float(), lse.float()
    block = max(256, BLOCK // (heads * new)) if queries.device.type == "cpu" else past
    for start in range(0, past, block):
        part = slice(start, min(start + block, past))
        earlier, earlier_lse = attention_with_lse(
            side_by_side, keys[:, :, part], values[:, :, part], scaling, is_causal=False
        )
        out, lse = merge(out, lse, earlier.float().reshape(out.shape), earlier_lse.float().reshape(lse.shape))
    return out.to(queries.dtype), lse


def _one_query(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Full attention of one query. On CPUs, two matrix products are many times faster than SDPA's kernel in
    bfloat16.
    """
    batch, heads = queries.shape[:2]
    grouped = queries.reshape(batch, keys.shape[1], -1, queries.shape[-1])
    if queries.device.type == "cpu":
        scores = (grouped @ keys.transpose(-1, -2)).float() * scaling
        out, lse = scores.softmax(-1).to(queries.dtype) @ values, scores.logsumexp(-1)
    else:
        out, lse = attention_with_lse(grouped, keys, values, scaling, is_causal=False)
    return out.reshape(batch, heads, 1, -1), lse.float().reshape(batch, heads, 1)


def attention_with_lse(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp [B, H, N] of its scores, by the torch kernel that returns it on this
    device.
    """
    kind = queries.device.type
    if kind not in ("cpu", "cuda") or queries.shape[-1] != values.shape[-1]:
        return _by_definition(queries, keys, values, scaling, is_causal)
    if kind == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, is_causal, scale=scaling
        )
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
    """The same without a fused kernel: for devices other than CPU and CUDA, and for values of another size
    than keys.
    """
    scores = queries @ keys.transpose(-1, -2) * scaling
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)
