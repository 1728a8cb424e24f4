"""One decode step, from a token's embedding to the greedy token behind it, as a CUDA graph.

Nothing in a step depends on the host: the length lies on the device and no grid changes with it. So one graph
for each way to attend serves every length and every question; it is captured anew only after a buffer or
codebook was replaced (`Steps.version`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adamas_cli.engine.cache import AdamasCache
from adamas_cli.engine.layers import FullLayer, SparseDecoding

Forward = Callable[[Tensor, Tensor], Tensor]
# Kinds of RoPE that look at the positions on the host, and so stop the device at each step.
HOST_ROPE = ("dynamic", "longrope")


def graph_obstacle(model: Any, cache: object, sparse: SparseDecoding | None) -> str | None:
    """Why a step of this model is no CUDA graph, in a few words, or None where one can be tried."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if not isinstance(cache, AdamasCache) or not all(isinstance(layer, FullLayer) for layer in cache.layers):
        return "some layers attend to a window or keep their own attention"
    if cache.steps.dense is None:
        return "Triton does not run here"
    if sparse is not None and sparse.backend.name != "triton":
        return f"the {sparse.backend.name} backend computes sparse steps"
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {value.get("rope_type") for value in (rope, *rope.values()) if isinstance(value, dict)}
    for kind in HOST_ROPE:
        if kind in kinds:
            return f"its positions are of kind {kind}"
    return None


@dataclass
class _Graph:
    """A captured step. token: int64 [1], which it reads, and then holds the greedy token; logits: [V]."""

    version: int
    graph: torch.cuda.CUDAGraph
    token: Tensor
    logits: Tensor


class GraphedSteps:
    """The steps of one model with one cache, captured when they are first needed.

    forward: one token, int64 [1], at a position, int64 [1, 1], through the model: the logits behind it, [V].
    Its length on the device must advance in it.
    """

    def __init__(self, cache: AdamasCache, forward: Forward) -> None:
        self._cache = cache
        self._forward = forward
        self._graphs: dict[bool, _Graph] = {}

    def step(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token, int64 [1]; the logits behind it, [V], and the greedy token, int64 [1].

        Both are valid until the next step. Raises RuntimeError where a step cannot be captured; then the
        cache is as it was.
        """
        self._cache.make_room(1)
        graph = self._graphs.get(self._cache.decodes_fully)
        if graph is None or graph.version != self._cache.steps.version:
            self._graphs.pop(self._cache.decodes_fully, None)
            graph = self._graphs[self._cache.decodes_fully] = self._capture(token)
        if token is not graph.token:
            graph.token.copy_(token)
        graph.graph.replay()
        self._cache.count_one()
        return graph.logits, graph.token

    def _capture(self, token: Tensor) -> _Graph:
        cache, device = self._cache, token.device
        own = token.clone()
        mark, counted = cache.mark(), None if cache.tally is None else cache.tally.clone()
        version = cache.steps.version
        try:
            # Once before: kernels are compiled, and what a layer makes at its first step is made.
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._run(own)
            torch.cuda.current_stream(device).wait_stream(stream)
            cache.rewind(mark)
            own.copy_(token)
            graph = torch.cuda.CUDAGraph()
            pool = next((other.graph.pool() for other in self._graphs.values()), None)
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                logits = self._run(own)
        finally:
            cache.rewind(mark)
            if cache.tally is not None and counted is not None:
                cache.tally.copy_(counted)
        assert cache.steps.version == version, "a step replaced its own buffers"
        return _Graph(version, graph, own, logits)

    def _run(self, token: Tensor) -> Tensor:
        logits = self._forward(token, self._cache.steps.length.long().unsqueeze(0))
        token.copy_(logits.argmax().unsqueeze(0))
        return logits
