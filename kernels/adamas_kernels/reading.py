"""The specification of sparse reading, in plain torch: key blocks with a negligible share of a query block's
softmax are replaced by their means.

Queries come in blocks of QUERY_BLOCK, counted from the start of a chunk; keys in blocks of KEY_BLOCK, counted
from the start of the document. The first key block, those that a query block reaches into and the NEAR ones
before them are always multiplied; any other only if its estimated share exceeds `ReadSettings.tolerance`.
A skipped block enters the softmax as KEY_BLOCK exp(q mean(k)) mean(v).

Shapes: as in `reference.py`; `C` key blocks that fit, `R` query blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adamas_kernels.reference import own_positions
from adamas_kernels.softmax import PLAIN, Softmax

KEY_BLOCK = 64
QUERY_BLOCK = 128
QUERY_STRIDE = 8  # one query of this many is sampled to choose blocks
DEVIATIONS = 2.0  # above the mean: the assumed scores of the keys of a block that matter
NEAR = 1  # key blocks before those that a query block reaches into


@dataclass(frozen=True)
class ReadSettings:
    """What one layer skips while it reads.

    tolerance: the largest estimated share of a query's softmax at which a block is replaced by its mean, see
    `block_shares`.
    """

    tolerance: float = 0.001

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be at least 0 and less than 1, not {self.tolerance}")


@dataclass
class BlockMeans:
    """Statistics of each whole block of one layer's keys and values, in one dtype, with spare room:
    [B, K, C, D] each, the last dimension contiguous.

    keys, values: means. spreads: the variance of each coordinate of the keys.
    """

    keys: Tensor
    values: Tensor
    spreads: Tensor

    @classmethod
    def empty(cls, keys: Tensor, values: Tensor, blocks: int, dtype: torch.dtype | None = None) -> BlockMeans:
        """Room for this many blocks of keys and values like [B, K, N, D]. dtype: theirs if None."""
        shape = (*keys.shape[:2], blocks)
        means, spreads = (keys.new_empty(*shape, keys.shape[-1], dtype=dtype) for _ in range(2))
        return cls(means, values.new_empty(*shape, values.shape[-1], dtype=dtype), spreads)

    @property
    def blocks(self) -> int:
        """C, the blocks that fit."""
        return self.keys.shape[2]

    def sequences(self) -> list[BlockMeans]:
        """The means of the sequences of a batch, as views."""
        parts = self.keys.split(1), self.values.split(1), self.spreads.split(1)
        return [BlockMeans(*tensors) for tensors in zip(*parts, strict=True)]


def summarize(keys: Tensor, values: Tensor, means: BlockMeans, start: int) -> None:
    """Write the statistics of all whole blocks of keys and values, [B, K, S, D], that end after the first
    `start` tokens.
    """
    first, last = start // KEY_BLOCK, keys.shape[2] // KEY_BLOCK
    tokens = slice(first * KEY_BLOCK, last * KEY_BLOCK)
    of_keys, of_values = (x[:, :, tokens].unflatten(2, (-1, KEY_BLOCK)).float() for x in (keys, values))
    mean = of_keys.mean(3)
    means.keys[:, :, first:last] = mean
    means.spreads[:, :, first:last] = (of_keys - mean.unsqueeze(3)).square().mean(3)
    means.values[:, :, first:last] = of_values.mean(3)


def near_block(position: int) -> int:
    """The first of the last key blocks, which queries from this position on always read."""
    return max(1, position // KEY_BLOCK - NEAR)


def choose_blocks(
    queries: Tensor,
    keys: Tensor,
    means: BlockMeans,
    scaling: float,
    settings: ReadSettings,
    softmax: Softmax = PLAIN,
) -> Tensor:
    """Which blocks of keys [B, K, S, D] the newest N tokens, queries [B, H, N, D], read: bool [B, H, R,
    ceil(S / KEY_BLOCK)], False for blocks entirely in the future.
    """
    batch, heads, new = queries.shape[:3]
    past, count = keys.shape[2] - new, blocks_of(keys.shape[2])
    chosen = []
    for start in range(0, new, QUERY_BLOCK):
        rows = queries[:, :, start : start + QUERY_BLOCK]
        end, near = past + start + rows.shape[2], near_block(past + start)
        block = torch.arange(count, device=keys.device) < blocks_of(end)
        block = block.repeat(batch, heads, 1)
        block[..., 1:near] = (
            block_shares(rows, keys[:, :, :end], means, scaling, softmax) > settings.tolerance
        )
        chosen.append(block)
    return torch.stack(chosen, 2)


def block_shares(
    queries: Tensor, keys: Tensor, means: BlockMeans, scaling: float, softmax: Softmax = PLAIN
) -> Tensor:
    """The largest estimated share of the softmax that a query block, the newest n <= QUERY_BLOCK tokens,
    [B, H, n, D], of keys [B, K, S, D], gives to each key block from 1 to before `near_block`: float32
    [B, H, near - 1].

    A few keys hold most of a block's share, and its mean does not show them: rotary embeddings average out
    over a block. If the coordinates were independent, their variances would give the spread of the keys'
    scores with a query; DEVIATIONS of it above the mean is about the largest score. Every QUERY_STRIDE-th
    query is sampled. The sum below a share takes the tokens that are always read exactly.
    """
    near = near_block(keys.shape[2] - queries.shape[2])
    sampled = queries[:, :, ::QUERY_STRIDE].float()
    spread = products(sampled.square(), means.spreads[:, :, 1:near]).sqrt()
    largest = products(sampled, means.keys[:, :, 1:near]) + DEVIATIONS * spread
    largest = softmax.capped(largest * scaling)
    always = _scores_of_always(sampled, keys, queries.shape[2], near, scaling, softmax)
    total = torch.cat([largest, always], -1).logsumexp(-1, keepdim=True)
    return (largest - total).exp().amax(2)


def _scores_of_always(
    sampled: Tensor, keys: Tensor, new: int, near: int, scaling: float, softmax: Softmax
) -> Tensor:
    """Scores of every QUERY_STRIDE-th of the newest `new` queries, [B, H, n, D], with the keys [B, K, S, D]
    that are always read: float32 [B, H, n, m].
    """
    size = keys.shape[2]
    position = torch.arange(size, device=keys.device)
    always = (position < KEY_BLOCK) | (position >= near * KEY_BLOCK)
    own = own_positions(new, size, keys.device)[::QUERY_STRIDE]
    found = scores(sampled, keys[:, :, always], scaling, softmax)
    return found.masked_fill(position[always] > own, -torch.inf)


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """Products of queries [B, H, n, D] with keys [B, K, m, D]: float32 [B, H, n, m]."""
    batch, heads, count, dim = queries.shape
    rows = queries.float().reshape(batch, keys.shape[1], -1, dim)
    return (rows @ keys.float().transpose(-1, -2)).view(batch, heads, count, -1)


def scores(queries: Tensor, keys: Tensor, scaling: float, softmax: Softmax = PLAIN) -> Tensor:
    """Scores of queries [B, H, n, D] with keys [B, K, m, D], soft-capped: float32 [B, H, n, m]."""
    return softmax.capped(products(queries, keys) * scaling)


def prefill_sparsely(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    means: BlockMeans,
    scaling: float,
    settings: ReadSettings,
    softmax: Softmax = PLAIN,
    computed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `Backend.prefill_sparsely`."""
    new, size = queries.shape[2], keys.shape[2]
    chosen = choose_blocks(queries, keys, means, scaling, settings, softmax)
    if computed is not None:
        count_blocks(chosen, new, size, computed)
    parts = []
    for block, start in enumerate(range(0, new, QUERY_BLOCK)):
        rows = queries[:, :, start : start + QUERY_BLOCK]
        end = size - new + start + rows.shape[2]
        read = chosen[:, :, block, : blocks_of(end)]
        parts.append(
            attend_to_blocks(rows, keys[:, :, :end], values[:, :, :end], means, read, scaling, softmax)
        )
    outs, lses = zip(*parts, strict=True)
    return softmax.with_sinks(torch.cat(outs, 2).to(queries.dtype), torch.cat(lses, 2))


def attend_to_blocks(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    means: BlockMeans,
    chosen: Tensor,
    scaling: float,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Causal attention of one query block, the newest tokens, [B, H, n, D], over the chosen blocks, bool
    [B, H, ceil(S / KEY_BLOCK)], of keys and values [B, K, S, D], and over the means of the others.

    Returns the output float32 [B, H, n, D] and the log-sum-exp float32 [B, H, n], without learned sinks.
    """
    new, size = queries.shape[2], keys.shape[2]
    near = near_block(size - new)
    read = chosen.repeat_interleave(KEY_BLOCK, -1)[..., :size].unsqueeze(2)
    hidden = torch.arange(size, device=keys.device) > own_positions(new, size, keys.device)
    exact = scores(queries, keys, scaling, softmax).masked_fill(hidden | ~read, -torch.inf)
    left = scores(queries, means.keys[:, :, 1:near], scaling, softmax) + math.log(KEY_BLOCK)
    left = left.masked_fill(chosen[..., 1:near].unsqueeze(2), -torch.inf)
    joint = torch.cat([exact, left], -1)
    weights = joint.softmax(-1).reshape(len(keys), keys.shape[1], -1, joint.shape[-1])
    out = weights[..., :size] @ values.float() + weights[..., size:] @ means.values[:, :, 1:near].float()
    return out.view(*queries.shape[:3], -1), joint.logsumexp(-1)


def count_blocks(chosen: Tensor, new: int, size: int, computed: Tensor) -> None:
    """Add to `computed`, int64 [2], the number of chosen blocks, see `choose_blocks`, and the number that
    dense reading of the newest `new` of `size` tokens would compute.
    """
    ends = (min(start + QUERY_BLOCK, new) + size - new for start in range(0, new, QUERY_BLOCK))
    computed[0] += chosen.sum()
    computed[1] += sum(map(blocks_of, ends)) * chosen.shape[0] * chosen.shape[1]


def blocks_of(tokens: int) -> int:
    """The number of key blocks that this many tokens reach into."""
    return -(-tokens // KEY_BLOCK)
