"""Sparse decode steps on recorded inputs of a real model, compared with full attention and random data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from adamas_kernels.contract import Backend, SparseSettings
from torch import Tensor

from adamas_cli.lab.bench.clock import microseconds
from adamas_cli.lab.bench.contention import Contention
from adamas_cli.lab.bench.dense import fastest
from adamas_cli.lab.bench.replay import Replay
from adamas_cli.lab.bench.traces import Trace, random_traces


@dataclass(frozen=True)
class Source:
    """Where traces come from. built: how layers that no model has were built, None for a model's own."""

    model: str
    text: str
    built: str | None = None


@dataclass(frozen=True)
class RecordedRow:
    """All layers of one length at one budget. Times in microseconds per layer.

    attended: average tokens per query head over all steps. layers, steps: the recorded ones. dense: the
    fastest full attention, by `dense_kernel`. step: the mean of all steps, the cost of a token; median,
    worst: of the same steps. random: the mean step on random numbers instead, random_worst: its worst.
    ratio: dense / step. to_random: step / random. slower: share of steps that left the ordinary path, None if
    the backend does not report it. others_cores: cores that other programs kept busy.
    """

    device: str
    backend: str
    dtype: str
    model: str
    text: str
    built: str | None
    shape: str
    budget: int
    error: float | None
    attended: float
    context: int
    layers: int
    steps: int
    dense: float
    dense_kernel: str
    step: float
    median: float
    worst: float
    random: float
    random_worst: float
    ratio: float
    to_random: float
    slower: float | None
    others_cores: float


@dataclass(frozen=True)
class LayerRow:
    """The steps of one layer, in microseconds. spread: worst / median. slower: see RecordedRow."""

    text: str
    shape: str
    budget: int
    context: int
    layer: int
    median: float
    worst: float
    spread: float
    slower: float | None


@dataclass(frozen=True)
class RecordedBench:
    """Measures traces with one backend. name: the device's. repeats: number of replays; a step's time is
    their median. say: receives progress lines.
    """

    backend: Backend
    settings: SparseSettings
    name: str
    repeats: int
    say: Callable[[str], None]

    def measure(
        self, source: Source, traces: list[Trace], budgets: Sequence[int]
    ) -> Iterator[tuple[RecordedRow, list[LayerRow]]]:
        """A row for each budget, with a row for each layer."""
        first = traces[0]
        caches = [trace.cache for trace in traces]
        about = f"{source.text}, {first.shape} at {first.context:,}"
        self.say(f"{about}: measuring full attention")
        contention = Contention()
        dense = fastest(first.queries[0], caches, first.context, microseconds)
        random = random_traces(traces, self.backend, self.settings)
        for budget in budgets:
            self.say(f"{about}: replaying at budget {budget:,}")
            settings = replace(self.settings, budget=budget)
            replay = Replay(self.backend, traces, settings)
            slower, attended = replay.slower(), replay.attended()
            times = replay.microseconds(self.repeats)
            at_random = Replay(self.backend, random, settings).microseconds(self.repeats)
            row = self._row(
                source, first, settings, attended, dense, times, at_random, slower, contention.cores()
            )
            yield row, _layer_rows(source, traces, budget, times, slower)

    def _row(
        self,
        source: Source,
        trace: Trace,
        settings: SparseSettings,
        attended: float,
        dense: tuple[float, str],
        times: Tensor,
        at_random: Tensor,
        slower: Tensor | None,
        others: float,
    ) -> RecordedRow:
        """times, at_random: float64 [layers, steps]; slower: bool [layers, steps]."""
        step, random = float(times.mean()), float(at_random.mean())
        return RecordedRow(
            device=self.name,
            backend=self.backend.name,
            dtype=str(trace.queries.dtype).removeprefix("torch."),
            model=source.model,
            text=source.text,
            built=source.built,
            shape=str(trace.shape),
            budget=settings.budget,
            error=settings.error,
            attended=attended,
            context=trace.context,
            layers=len(times),
            steps=trace.steps,
            dense=dense[0],
            dense_kernel=dense[1],
            step=step,
            median=_median(times),
            worst=float(times.max()),
            random=random,
            random_worst=float(at_random.max()),
            ratio=dense[0] / step,
            to_random=step / random,
            slower=_share(slower),
            others_cores=round(others, 2),
        )


def _layer_rows(
    source: Source, traces: Sequence[Trace], budget: int, times: Tensor, slower: Tensor | None
) -> list[LayerRow]:
    rows = []
    for index, trace in enumerate(traces):
        median, worst = _median(times[index]), float(times[index].max())
        share = None if slower is None else _share(slower[index])
        shape, spread = str(trace.shape), worst / median
        rows.append(
            LayerRow(source.text, shape, budget, trace.context, trace.layer, median, worst, spread, share)
        )
    return rows


def _median(times: Tensor) -> float:
    return float(times.quantile(0.5))


def _share(marked: Tensor | None) -> float | None:
    return None if marked is None else float(marked.double().mean())
