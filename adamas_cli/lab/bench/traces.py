"""Inputs of a layer in consecutive decode steps: recorded, built from recordings, or random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from adamas_kernels.contract import Backend, LayerCache, SparseSettings
from adamas_kernels.softmax import PLAIN, Softmax
from torch import Tensor

from adamas_cli.cache.placement import placement_on
from adamas_cli.lab.bench.caches import coded_cache
from adamas_cli.lab.bench.kernels import Shape


@dataclass(frozen=True)
class Trace:
    """The steps of one layer.

    layer: its number in the model. cache: of `context` tokens, with room for those of the steps. queries:
    [T, 1, H, 1, D], for T steps of one token; keys and values: [T, 1, K, 1, D].
    """

    layer: int
    cache: LayerCache
    context: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    softmax: Softmax = PLAIN

    @property
    def steps(self) -> int:
        """T."""
        return len(self.queries)

    @property
    def shape(self) -> Shape:
        """Its heads."""
        return Shape(self.queries.shape[2], self.keys.shape[2], self.queries.shape[4])


def with_one_length(traces: list[Trace]) -> list[Trace]:
    """The same layers, with caches that share one length tensor, as in a model."""
    for trace in traces:
        trace.cache.length = traces[0].cache.length
    return traces


def random_traces(like: list[Trace], backend: Backend, settings: SparseSettings) -> list[Trace]:
    """Layers of the same number, shape, length and dtype with random values: a new query at every step, which
    resembles no other.
    """
    return with_one_length([_random_trace(trace, backend, settings) for trace in like])


def _random_trace(like: Trace, backend: Backend, settings: SparseSettings) -> Trace:
    queries, keys, values = (torch.randn_like(x) for x in (like.queries, like.keys, like.values))
    room = like.context + like.steps
    place = placement_on(keys.device)
    buffers = [place.buffer(one[0], room).tensor.normal_() for one in (keys, values)]
    seen = queries[:, 0].transpose(0, 2)  # [1, H, T, D]
    cache = coded_cache(buffers[0], buffers[1], like.context, seen, backend, settings)
    return Trace(like.layer, cache, like.context, queries, keys, values, like.scaling, like.softmax)
