"""One decode step, from a token's embedding to the greedy token after it, as a CUDA graph; and one of a few
tokens, which checks a draft.

Nothing in a step depends on the host: the length is on the device and no grid changes with it. So one graph
per way of attending and number of tokens serves every length and question. It is captured again only after a
buffer or codebook was replaced (`Extent.version`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.layer import FULL, HYBRID, LATENT, RECURRENT, SLIDING, STATELESS
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.engine.drawn import Drawn
from adamas_cli.engine.model import Model

# The kind of RoPE that looks at positions on the host, which stalls the device at each step.
HOST_ROPE = "dynamic"
# Layers whose buffers stay in place between steps.
IN_PLACE = {FULL, LATENT, SLIDING, HYBRID, *RECURRENT, *STATELESS}


def graph_obstacle(model: Model, cache: KVCache, sparse: Sparse | None) -> str | None:
    """Why a step of this model cannot be a CUDA graph, in a few words; None if it is worth trying."""
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if not cache.kinds <= IN_PLACE:
        return f"it has layers of kind {' and '.join(sorted(cache.kinds - IN_PLACE))}"
    if model.dense is None:
        return "Triton does not run here"
    if sparse is not None and sparse.backend.name != "triton":
        return f"the {sparse.backend.name} backend computes sparse steps"
    if sparse is None and cache.staged:
        return "keys and values come from host memory at each step"
    if any(scaling.kind == HOST_ROPE for scaling in model.rotation.scalings):
        return f"its positions are of kind {HOST_ROPE}"
    return None


@dataclass
class _Graph:
    """A captured step. tokens: int64 [n], those it reads; logits: after each, [n, V]. drawn: of one token,
    the greedy one after it, which takes its place in `tokens`.
    """

    version: int
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    logits: Tensor
    drawn: Drawn | None


class CapturedSteps:
    """The steps of one model with one cache, captured on first use."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model = model
        self._cache = cache
        self._graphs: dict[tuple[Mode, int], _Graph] = {}

    def step(self, tokens: Tensor, mode: Mode) -> tuple[Tensor, Drawn | None]:
        """Append tokens, int64 [n], 1 <= n <= LARGEST_STEP; returns the logits after each, [n, V], and the
        greedy token after a single one.

        Both are valid until the next step. A tally counts several tokens apart, until it is settled. Raises
        RuntimeError if a step cannot be captured; the cache is then unchanged.
        """
        new = len(tokens)
        self._cache.make_room(new)
        if not self.captured(mode, new):
            self._graphs.pop((mode, new), None)
            self._graphs[mode, new] = self._capture(tokens, mode)
        graph = self._graphs[mode, new]
        if tokens is not graph.tokens:
            graph.tokens.copy_(tokens)
        if mode.tally is not None:
            mode.tally.of_step(new)
        graph.graph.replay()
        self._cache.count(new, mode)
        return graph.logits, graph.drawn

    def captured(self, mode: Mode, new: int) -> bool:
        """Whether this many tokens need no new graph."""
        graph = self._graphs.get((mode, new))
        return graph is not None and graph.version == self._cache.extent.version

    def _capture(self, tokens: Tensor, mode: Mode) -> _Graph:
        cache, device = self._cache, tokens.device
        own = tokens.clone()
        drawn = Drawn(own, torch.empty(1, device=device)) if len(tokens) == 1 else None
        mark, counted = cache.mark(), None if mode.tally is None else mode.tally.counts.clone()
        if mode.tally is not None:
            mode.tally.of_step(len(tokens))
        version = cache.extent.version
        try:
            # A dry run first: it compiles kernels and creates what layers make at their first step.
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._run(own, drawn, mode)
            torch.cuda.current_stream(device).wait_stream(stream)
            cache.rewind(mark)
            own.copy_(tokens)
            graph = torch.cuda.CUDAGraph()
            pool = next((other.graph.pool() for other in self._graphs.values()), None)
            with (
                left_as_they_were(device),
                torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
            ):
                logits = self._run(own, drawn, mode)
        finally:
            cache.rewind(mark)
            if mode.tally is not None and counted is not None:
                mode.tally.counts.copy_(counted)
        assert cache.extent.version == version, "a step replaced its own buffers"
        return _Graph(version, graph, own, logits, drawn)

    def _run(self, tokens: Tensor, drawn: Drawn | None, mode: Mode) -> Tensor:
        """The logits after each token, [n, V]; drawn: where the greedy one goes."""
        from adamas_kernels.triton.largest import largest  # Triton is nowhere else needed

        positions = self._cache.extent.positions()
        if drawn is None:
            positions = positions + torch.arange(len(tokens), device=tokens.device)
        logits = self._model.forward(tokens, self._cache, mode, every=True, positions=positions)
        if drawn is not None:
            largest(logits, drawn.token, drawn.weight)
        return logits


@contextmanager
def left_as_they_were(device: torch.device) -> Iterator[None]:
    """Restore a device's stream and random numbers if a capture fails: torch then leaves its own stream
    current, and a generator that waits for the capture's end.
    """
    stream = torch.cuda.current_stream(device)
    generator = torch.cuda.default_generators[stream.device_index]
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(generator.clone_state())
        raise
