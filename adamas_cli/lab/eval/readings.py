"""Ways to read a document: densely, sparsely as the product does, and with other block selections.

The last take, for each query head and block of queries, the fewest blocks of keys that hold SHARE of the mass
by their estimate. The omitted blocks enter by their means, as in the product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from adamas_kernels import reading
from adamas_kernels.reading import KEY_BLOCK, QUERY_BLOCK, BlockMeans, ReadSettings, near_block
from adamas_kernels.reference import own_positions
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.backend import TorchBackend
from torch import Tensor

DENSE = "dense"
SHARE = 0.9  # of the mass, as in XAttention and FlashPrefill
STRIDE = 8  # of XAttention's antidiagonals, arXiv 2503.16428, section 3.1

Estimate = Callable[[Tensor, Tensor, BlockMeans, float], Tensor]


def by_mass(queries: Tensor, keys: Tensor, means: BlockMeans, scaling: float) -> Tensor:
    """The true mass of each block, over all queries; unknown in practice before all keys are read."""
    new, size = queries.shape[2], keys.shape[2]
    hidden = torch.arange(size, device=keys.device) > own_positions(new, size, keys.device)
    scores = reading.scores(queries, keys, scaling).masked_fill(hidden, -torch.inf)
    return _by_block(scores.softmax(-1)).sum(2)


def by_means(queries: Tensor, keys: Tensor, means: BlockMeans, scaling: float) -> Tensor:
    """FlashPrefill: the score of the mean of the queries with the mean of each block of keys."""
    whole = keys[:, :, : keys.shape[2] // KEY_BLOCK * KEY_BLOCK].unflatten(2, (-1, KEY_BLOCK)).float().mean(3)
    rest = keys[:, :, whole.shape[2] * KEY_BLOCK :].float()
    centres = torch.cat([whole, rest.mean(2, keepdim=True)], 2) if rest.shape[2] else whole
    return reading.scores(queries.float().mean(2, keepdim=True), centres, scaling).softmax(-1)[:, :, 0]


def by_antidiagonals(queries: Tensor, keys: Tensor, means: BlockMeans, scaling: float) -> Tensor:
    """XAttention: sums of every STRIDE-th antidiagonal of the scores, as one product of longer rows."""
    past = keys.shape[2] - queries.shape[2]
    rows, columns = (_strided(x) for x in (queries, keys))
    scores = reading.scores(rows.flip(3).flatten(3), columns.flatten(3), scaling / STRIDE)
    last = past + STRIDE * torch.arange(1, scores.shape[2] + 1, device=keys.device).unsqueeze(1)
    hidden = torch.arange(scores.shape[3], device=keys.device) * STRIDE >= last
    return _by_block(scores.masked_fill(hidden, -torch.inf).softmax(-1), KEY_BLOCK // STRIDE).sum(2)


def _strided(rows: Tensor) -> Tensor:
    """Rows [B, H, n, D] in groups of STRIDE, the last padded with zeros: float32 [B, H, m, STRIDE, D]."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[2] % STRIDE))
    return padded.float().unflatten(2, (-1, STRIDE))


def _by_block(weights: Tensor, each: int = KEY_BLOCK) -> Tensor:
    """Sums over blocks of this many columns, the last perhaps smaller: [..., m] to [..., ceil(m / each)]."""
    return torch.nn.functional.pad(weights, (0, -weights.shape[-1] % each)).unflatten(-1, (-1, each)).sum(-1)


@dataclass
class StudyReading(TorchBackend):
    """Sparse reading in plain torch with blocks chosen by `estimate`.

    estimate: the mass of each block of keys [B, K, S, D] for the newest n tokens, a block of queries
    [B, H, n, D], in any unit, [B, H, ceil(S / KEY_BLOCK)].
    """

    estimate: Estimate
    share: float = SHARE

    name = "study"

    def __str__(self) -> str:
        return f"{self.estimate.__name__} share={self.share}"

    def prefill_sparsely(
        self,
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
        past, parts = keys.shape[2] - queries.shape[2], []
        for start in range(0, queries.shape[2], QUERY_BLOCK):
            rows = queries[:, :, start : start + QUERY_BLOCK]
            end = past + start + rows.shape[2]
            chosen = self._chosen(rows, keys[:, :, :end], means, scaling)
            if computed is not None:
                computed += torch.stack([chosen.sum(), torch.tensor(chosen.numel(), device=keys.device)])
            seen = keys[:, :, :end], values[:, :, :end]
            parts.append(reading.attend_to_blocks(rows, *seen, means, chosen, scaling))
        outs, lses = zip(*parts, strict=True)
        return torch.cat(outs, 2).to(queries.dtype), torch.cat(lses, 2)

    def _chosen(self, queries: Tensor, keys: Tensor, means: BlockMeans, scaling: float) -> Tensor:
        """The blocks of keys that a block of queries reads: bool [B, H, ceil(S / KEY_BLOCK)]."""
        mass = self.estimate(queries, keys, means, scaling)
        ranked = (mass / mass.sum(-1, keepdim=True)).sort(-1, descending=True)
        enough = ranked.values.cumsum(-1) - ranked.values < self.share
        chosen = torch.zeros_like(enough).scatter_(-1, ranked.indices, enough)
        chosen[..., 0] = True
        chosen[..., near_block(keys.shape[2] - queries.shape[2]) :] = True
        return chosen


READINGS: dict[str, ReadSettings | StudyReading | None] = {
    DENSE: None,
    "sparse": ReadSettings(),
    "mass": StudyReading(by_mass),
    "means": StudyReading(by_means),
    "antidiagonals": StudyReading(by_antidiagonals),
}
