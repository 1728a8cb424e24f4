"""A backend that chooses tokens by any method and records how good the choice was."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from adamas_kernels import reference
from adamas_kernels.contract import LayerCache, LayerView, SparseSettings
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.backend import TorchBackend
from adamas_kernels.torch.step import append, attend_ranked
from torch import Tensor

from adamas_cli.lab.eval.methods import Method, true_scores


@dataclass
class Worth:
    """Per position of one layer, as a mean over its heads: softmax mass kept, the mass that the true top-k
    would keep, the share of those tokens that was chosen, and the number of tokens attended to.
    """

    mass: list[float] = field(default_factory=list)
    best_mass: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


@dataclass
class StudyBackend(TorchBackend):
    """Decode steps in plain torch with tokens chosen by `method`.

    worth: by layer, in the model's order.
    """

    method: Method
    worth: list[Worth] = field(default_factory=list)
    _layers: dict[int, int] = field(default_factory=dict)

    name = "study"

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`; the tally is ignored."""
        view = append(keys, values, cache)
        rank = self.method.rank(queries, view, settings)
        out, lse, index = attend_ranked(queries, view, rank, scaling, settings, softmax)
        self._count(cache, queries, view, index, scaling, softmax)
        return out, lse

    def _count(
        self,
        cache: LayerCache,
        queries: Tensor,
        view: LayerView,
        index: Tensor,
        scaling: float,
        softmax: Softmax,
    ) -> None:
        new, size = queries.shape[2], view.keys.shape[2]
        own = reference.own_positions(new, size, queries.device)
        future = torch.arange(size, device=queries.device) > own
        scores = softmax.capped(true_scores(queries, view.keys) * scaling)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        best = weights.topk(index.shape[-1])
        chosen = torch.zeros_like(weights, dtype=torch.bool)
        chosen = F.pad(chosen, (0, 1)).scatter_(-1, index, True)[..., :size] & ~future
        count = chosen.sum(-1, keepdim=True)
        counted = torch.arange(index.shape[-1], device=index.device) < count
        if id(cache) not in self._layers:
            self._layers[id(cache)] = len(self.worth)
            self.worth.append(Worth())
        worth = self.worth[self._layers[id(cache)]]
        worth.mass += (weights * chosen).sum(-1).mean((0, 1)).tolist()
        worth.best_mass += (best.values * counted).sum(-1).mean((0, 1)).tolist()
        found = (chosen.gather(-1, best.indices) & counted).sum(-1) / count.squeeze(-1)
        worth.recall += found.mean((0, 1)).tolist()
        worth.tokens += count.float().mean((0, 1, 3)).tolist()
