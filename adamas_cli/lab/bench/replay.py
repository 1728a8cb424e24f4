"""Replays recorded decode steps in order, and times each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from adamas_kernels.contract import Backend, SparseSettings
from torch import Tensor

from adamas_cli.lab.bench.clock import turn_microseconds
from adamas_cli.lab.bench.traces import Trace


class Replay:
    """The steps of several layers that share a length.

    On a GPU, a step's inputs are copied to the same buffers each time, so that one CUDA graph per layer
    serves all its steps.
    """

    def __init__(self, backend: Backend, traces: Sequence[Trace], settings: SparseSettings) -> None:
        self._backend = backend
        self._traces = traces
        self._settings = settings
        self._length = traces[0].cache.length
        assert all(trace.cache.length is self._length for trace in traces)
        self._given = [
            [(trace.queries[step], trace.keys[step], trace.values[step]) for trace in traces]
            for step in range(traces[0].steps)
        ]
        self._inputs = self._given[0]
        if self._length.device.type == "cuda":
            self._inputs = [(q.clone(), k.clone(), v.clone()) for q, k, v in self._given[0]]
        self._sums = [trace.cache.value_sum.clone() for trace in traces]

    @property
    def steps(self) -> int:
        """The number of steps of each layer."""
        return len(self._given)

    def go_to(self, step: int) -> None:
        """Bring every layer to this step. All earlier steps must have been taken since step 0, which discards
        appended tokens.
        """
        self._length.fill_(self._traces[0].context + step)
        if step == 0:
            for trace, value_sum in zip(self._traces, self._sums, strict=True):
                trace.cache.value_sum.copy_(value_sum)
        if self._length.device.type != "cuda":
            self._inputs = self._given[step]
            return
        for buffers, given in zip(self._inputs, self._given[step], strict=True):
            for buffer, one in zip(buffers, given, strict=True):
                buffer.copy_(one)

    def take(self, layer: int, tally: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One layer's step, with its output [1, H, 1, D] and log-sum-exp [1, H, 1]."""
        trace = self._traces[layer]
        return self._backend.decode_step(
            *self._inputs[layer], trace.cache, trace.scaling, self._settings, tally, trace.softmax
        )

    def run(self, tally: Tensor | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """Every step of every layer once, in order: step, layer and output."""
        for step in range(self.steps):
            self.go_to(step)
            for layer in range(len(self._traces)):
                yield step, layer, self.take(layer, tally)[0]

    def attended(self) -> float:
        """Average number of tokens that a query head attends to, over all steps and layers."""
        capacity, heads = self._traces[0].cache.capacity, self._traces[0].queries.shape[2]
        total = 0.0
        for _, _, _ in self.run(tally := torch.zeros(1, 2, capacity, device=self._length.device)):
            total += float(tally[0, 0].sum())
            tally.zero_()
        self.go_to(0)
        return total / (self.steps * len(self._traces) * heads)

    def microseconds(self, repeats: int) -> Tensor:
        """Time of each step, float64 [layers, steps]: the median of this many replays."""
        takes: list[Callable[[], object]] = [partial(self.take, layer) for layer in range(len(self._traces))]
        try:
            return turn_microseconds(self.go_to, takes, self.steps, repeats, self._length.device)
        finally:
            self.go_to(0)

    def slower(self) -> Tensor | None:
        """Which steps left the ordinary path for any query: bool [layers, steps]. None if the backend reports
        no other path.

        A backend that does has a method `reread`: for each query of the previous step, the number of token
        groups that the selection had to examine again, int32 [rows].
        """
        reread: Callable[[], Tensor | None] | None = getattr(self._backend, "reread", None)
        if reread is None:
            return None
        found = []
        for _ in self.run():
            groups = reread()
            if groups is None:
                return None
            found.append((groups > 0).any())
        self.go_to(0)
        return torch.stack(found).view(self.steps, len(self._traces)).T.cpu()
