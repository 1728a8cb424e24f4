"""Ways to choose the tokens that a query attends to, compared with the same budget and the same layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from adamas_kernels.contract import LayerView, SparseSettings
from adamas_kernels.torch.step import rank_by_codes
from torch import Tensor

ERROR = 2.0**-11  # for dot-bounded, whose budget is a cap
PAPER_EDGE = 10.0  # arXiv 2510.18413, section 4.1
QUEST_PAGE = 16  # tokens that share one bound, arXiv 2406.10774, section 4.1
SINKS = 4  # arXiv 2309.17453, section 3.2

Rank = Callable[[Tensor, LayerView, SparseSettings], Tensor]


@dataclass(frozen=True)
class Method:
    """rank: float32 [B, H, N, S] from queries [B, H, N, D] and a layer's cache; higher is attended to first.

    settings: those that hold at any budget.
    """

    name: str
    rank: Rank
    settings: SparseSettings

    def at(self, budget: int) -> SparseSettings:
        """The settings for a budget."""
        if self.name == "streaming-llm":
            return replace(self.settings, budget=budget, recents=budget)
        return replace(self.settings, budget=budget)


def by_score(queries: Tensor, cache: LayerView, settings: SparseSettings) -> Tensor:
    """The true scores, which no practical method knows before it has read all keys."""
    return true_scores(queries, cache.keys)


def by_page(queries: Tensor, cache: LayerView, settings: SparseSettings) -> Tensor:
    """Quest: for each page of tokens, the greatest product that its coordinates' extremes allow."""
    size = cache.keys.shape[2]
    padded = F.pad(cache.keys.float(), (0, 0, 0, -size % QUEST_PAGE), value=torch.nan)
    pages = padded.unflatten(2, (-1, QUEST_PAGE))
    low = pages.nan_to_num(torch.inf).amin(3)
    high = pages.nan_to_num(-torch.inf).amax(3)
    groups = queries.shape[1] // cache.keys.shape[1]
    low, high = (x.repeat_interleave(groups, 1).transpose(-1, -2) for x in (low, high))
    q = queries.float()
    bounds = q.clamp(min=0) @ high + q.clamp(max=0) @ low
    return bounds.repeat_interleave(QUEST_PAGE, -1)[..., :size]


def by_position(queries: Tensor, cache: LayerView, settings: SparseSettings) -> Tensor:
    """The newest tokens first; sinks and recents fill the whole budget."""
    position = torch.arange(cache.keys.shape[2], dtype=torch.float32, device=queries.device)
    return position.expand(*queries.shape[:3], -1)


def true_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Products of queries [B, H, N, D] with keys [B, K, S, D]: float32 [B, H, N, S]."""
    groups = queries.shape[1] // keys.shape[1]
    return queries.float() @ keys.float().repeat_interleave(groups, 1).transpose(-1, -2)


_BARE = SparseSettings(sinks=0, recents=1, compensate=False)

METHODS = {
    method.name: method
    for method in (
        Method("oracle", by_score, _BARE),
        Method("dot", rank_by_codes, SparseSettings()),
        Method("dot-bounded", rank_by_codes, SparseSettings(error=ERROR)),
        Method("dot-uncompensated", rank_by_codes, SparseSettings(compensate=False)),
        Method("dot-unbalanced", rank_by_codes, SparseSettings(balance=False)),
        Method("manhattan", rank_by_codes, SparseSettings(scorer="manhattan")),
        Method("paper", rank_by_codes, replace(_BARE, scorer="manhattan", edge=PAPER_EDGE)),
        Method("quest", by_page, _BARE),
        Method("streaming-llm", by_position, replace(_BARE, sinks=SINKS)),
    )
}
