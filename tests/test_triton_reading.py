"""Sparse reading's Triton kernels against its specification, in the interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels import reading as ref
from adamas_kernels.reading import BlockMeans, ReadSettings
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.triton import reading, sparse_prefill

from adamas_cli.models.device import has_cuda_gpu

DEVICE = torch.device("cuda" if has_cuda_gpu() else "cpu")
# heads, KV heads, head_dim, new tokens, tokens before them
SHAPES = [(4, 2, 64, 200, 700), (3, 1, 80, 130, 1000), (2, 2, 96, 1, 777), (4, 1, 128, 300, 128), (2, 1, 256, 70, 300)]
CLOSE = 0.02  # of a loss: kept in bfloat16, of means of queries in the keys' number format
SETTINGS = ReadSettings(0.004)


def chunk(heads, kv_heads, dim, new, past, dtype=torch.float16):
    """Queries, keys, values and means, where queries prefer keys near a few of them; tokens lie first, and
    what is not filled is not a number.
    """
    torch.manual_seed(0)
    size = new + past
    keys, values = torch.randn(2, 1, size, kv_heads, dim, device=DEVICE)
    keys = keys * 0.5 + keys[:, torch.arange(size) // 64 * 64]
    queries = torch.randn(1, new, heads, dim, device=DEVICE) * 2
    queries, keys, values = (x.to(dtype).transpose(1, 2) for x in (queries, keys, values))
    means = BlockMeans.empty(keys, values, ref.blocks_of(size) + 3)
    for buffer in (means.keys, means.values, means.parts):
        buffer.fill_(torch.nan)
    ref.summarize(keys, values, means, 0)
    return queries, keys, values, means


def as_bits(chosen, new, past):
    """Chosen blocks, bool [B, H, R, blocks], as the kernel that chooses writes them."""
    blocks = chosen.shape[-1]
    pitch = -(-blocks // reading.WORD) * reading.WORD
    whole = (past + torch.arange(0, new, ref.QUERY_BLOCK, device=DEVICE)) // ref.KEY_BLOCK
    counted = torch.nn.functional.pad(chosen, (0, pitch - blocks), value=True)
    counted |= torch.arange(pitch, device=DEVICE) >= whole[:, None]
    lanes = torch.arange(reading.WORD, device=DEVICE)
    bits = (counted.unflatten(-1, (-1, reading.WORD)).long() << lanes).sum(-1)
    listed = chosen & (torch.arange(blocks, device=DEVICE) < whole[:, None])
    lists = torch.nn.functional.pad(listed, (0, pitch - blocks)).int().argsort(dim=-1, descending=True, stable=True)
    return bits, lists.int(), listed.sum(-1).int()


def truth(queries, keys, values, means, chosen, scaling, softmax=PLAIN):
    """Attention to chosen blocks and means in float64."""
    past = keys.shape[2] - queries.shape[2]
    wide = BlockMeans(*(x.double() for x in vars(means).values()))
    parts = []
    for block, rows in enumerate(queries.double().split(ref.QUERY_BLOCK, 2)):
        end = past + block * ref.QUERY_BLOCK + rows.shape[2]
        some = chosen[:, :, block, : ref.blocks_of(end)]
        parts.append(
            attend_in_float64(rows, keys[:, :, :end].double(), values[:, :, :end].double(), wide, some, scaling, softmax)
        )
    outs, lses = zip(*parts, strict=True)
    return softmax.with_sinks(torch.cat(outs, 2), torch.cat(lses, 2))


def attend_in_float64(queries, keys, values, means, chosen, scaling, softmax):
    """`reading.attend_to_blocks` of one block of queries."""
    group, size, new = queries.shape[1] // keys.shape[1], keys.shape[2], queries.shape[2]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    whole = size // ref.KEY_BLOCK
    centres, mean_values = (x[:, :, :whole].repeat_interleave(group, 1) for x in (means.keys, means.values))
    read = chosen.repeat_interleave(ref.KEY_BLOCK, -1)[..., None, :size]
    own = torch.arange(size - new, size, device=DEVICE)[:, None]
    hidden = ~read | (torch.arange(size, device=DEVICE) > own)
    exact = softmax.capped(queries @ keys.mT * scaling).masked_fill(hidden, -torch.inf)
    left = softmax.capped(queries @ centres.mT * scaling) + torch.tensor(float(ref.KEY_BLOCK)).log().item()
    left = left.masked_fill(chosen[..., None, :whole], -torch.inf)
    joint = torch.cat([exact, left], -1)
    return joint.softmax(-1) @ torch.cat([values, mean_values], 2), joint.logsumexp(-1)
