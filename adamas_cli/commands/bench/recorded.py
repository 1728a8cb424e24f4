"""`adamas bench --kernels -m MODEL --text FILE`: sparse decode steps on a model's recorded layer inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.commands.bench.kernels import BUDGET, parse_shapes
from adamas_cli.commands.bench.shared import Record, parse_lengths, say
from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.lab.bench.document import Document
    from adamas_cli.lab.bench.kernels import Shape
    from adamas_cli.lab.bench.machine import Machine
    from adamas_cli.lab.bench.recorded import LayerRow, RecordedBench, RecordedRow, Source
    from adamas_cli.lab.bench.target import Target
    from adamas_cli.lab.bench.traces import Trace
    from adamas_cli.models import LoadedModel
    from adamas_cli.settings import DecodingSettings, ModelSettings

GPU_LENGTHS, CPU_LENGTHS = "8k,16k,30k", "4k"
NOTHING = "-"
TITLES = (
    "text",
    "heads",
    "context",
    "budget",
    "attended",
    "full, us",
    "by",
    "sparse, us",
    "ratio",
    "median",
    "worst",
    "random, us",
    "to random",
    "slower path",
)
LAYER_TITLES = (
    "text",
    "heads",
    "context",
    "budget",
    "layer",
    "median, us",
    "worst, us",
    "worst/median",
    "slower path",
)


@dataclass(frozen=True)
class Job:
    """What to measure. shapes: those to build from recorded heads, None for the model's own layers."""

    texts: Sequence[Path]
    shapes: str | None
    lengths: str | None
    repeats: int
    model: ModelSettings
    attention: DecodingSettings

    def measure(self) -> Iterator[tuple[Record, str]]:
        """Figures as they are measured, as records and Markdown lines: a line about the machine, rows of all
        layers together, then rows by layer. Raises UsageError, ModelUnavailableError and OverContextError
        before anything is measured.
        """
        from adamas_cli.lab.bench.machine import Machine
        from adamas_cli.lab.bench.recording import STEPS
        from adamas_cli.lab.bench.table import markdown_head, markdown_row
        from adamas_cli.lab.bench.target import model_target
        from adamas_cli.machine.threads import use_threads
        from adamas_cli.terminal.display import Display

        shapes = None if self.shapes is None else parse_shapes(self.shapes)
        with Display(answers=None, notes=sys.stderr) as display:
            target = model_target(self.model, display)
        lengths = self.lengths or (GPU_LENGTHS if target.device.type == "cuda" else CPU_LENGTHS)
        readings = [_Reading.of(target, self.texts, shapes, length) for length in parse_lengths(lengths)]
        use_threads(self.model.threads)
        machine = Machine.of(target.device, self.attention.backend, target.dtype)
        facts = {"model": target.name, "steps": STEPS, "backend": machine.backend, **machine.as_json()}
        yield facts, f"{self._about(target, machine)}\n\n{markdown_head(TITLES)}"
        by_layer: list[LayerRow] = []
        built: list[str] = []
        for row, layers in self._rows(target, machine, readings, shapes):
            by_layer += layers
            if row.built is not None and row.built not in built:
                built.append(row.built)
            yield asdict(row), markdown_row(_cells(row))
        heading = "\n".join(["", *built, *([""] if built else []), markdown_head(LAYER_TITLES)])
        for number, of_layer in enumerate(by_layer):
            line = markdown_row(_layer_cells(of_layer))
            yield asdict(of_layer), line if number else f"{heading}\n{line}"

    def _about(self, target: Target, machine: Machine) -> str:
        from adamas_cli.lab.bench.recording import STEPS

        return (
            f"{target.name}, {STEPS} teacher-forced steps after each text; {machine.about}; "
            f"{self.attention.scorer}"
        )

    def _rows(
        self, target: Target, machine: Machine, readings: Sequence[_Reading], shapes: Sequence[Shape] | None
    ) -> Iterator[tuple[RecordedRow, list[LayerRow]]]:
        from adamas_kernels.dispatch import load

        from adamas_cli.engine.attention import sparse_settings
        from adamas_cli.heap import give_back
        from adamas_cli.lab.bench.contention import NOTICEABLE
        from adamas_cli.lab.bench.recorded import RecordedBench
        from adamas_cli.lab.bench.recording import STEPS
        from adamas_cli.planning.choice import budget_for
        from adamas_cli.terminal.display import Display

        with Display(answers=None, notes=sys.stderr) as display:
            loaded = target.load(display)
        settings = sparse_settings(self.attention, BUDGET)
        bench = RecordedBench(load(machine.backend, say), settings, machine.device, self.repeats, say)
        chosen = self.attention.budget
        for reading in readings:
            budgets = (
                [chosen]
                if chosen
                else [BUDGET, budget_for(reading.context + STEPS, bounded=settings.error is not None)]
            )
            for source, traces in self._traces(loaded, bench, reading, shapes):
                for row, layers in bench.measure(source, traces, budgets):
                    if row.others_cores > NOTICEABLE:
                        say(f"other programs kept {row.others_cores:.1f} cores busy; this row is unreliable")
                    yield row, layers
                del traces  # before the next ones are made
                give_back()

    def _traces(
        self,
        loaded: LoadedModel,
        bench: RecordedBench,
        reading: _Reading,
        shapes: Sequence[Shape] | None,
    ) -> Iterator[tuple[Source, list[Trace]]]:
        """The model's own layers for each text, or layers of each shape, built from those of all texts."""
        from adamas_cli.lab.bench.composing import Composer
        from adamas_cli.lab.bench.kernels import LAYERS
        from adamas_cli.lab.bench.recorded import Source

        name = loaded.files.name
        if shapes is None:
            for document in reading.documents:
                yield Source(name, document.text or ""), self._record(loaded, bench, document)
            return
        recorded = [self._record(loaded, bench, document) for document in reading.documents]
        text = ", ".join(dict.fromkeys(document.text or "" for document in reading.documents))
        for shape in shapes:
            composer = Composer(recorded, shape)
            built = composer.about(reading.context, LAYERS)
            say(f"building {built}")
            source = Source(name, text, built)
            yield source, composer.layers(LAYERS, reading.context, bench.backend, bench.settings)

    def _record(self, loaded: LoadedModel, bench: RecordedBench, document: Document) -> list[Trace]:
        from adamas_cli.lab.bench.pulse import Pulse
        from adamas_cli.lab.bench.recording import STEPS, record

        traces = record(
            loaded,
            document.ids,
            STEPS,
            backend=bench.backend,
            settings=bench.settings,
            dense_layers=self.attention.dense_layers,
            chunk=self.attention.prefill_chunk,
            pulse=Pulse(say, f"{document.text}, {len(document.ids):,} tokens"),
        )
        if not traces:
            raise UsageError(f"--dense-layers {self.attention.dense_layers}: no layer of the model is sparse")
        return traces


@dataclass(frozen=True)
class _Reading:
    """The documents read for one context length."""

    context: int
    documents: list[Document]

    @classmethod
    def of(
        cls, target: Target, texts: Sequence[Path], shapes: Sequence[Shape] | None, context: int
    ) -> _Reading:
        """Raises UsageError if a text is too short, and OverContextError if the model cannot read this much
        and there is no shape to build contexts for.
        """
        from adamas_cli.lab.bench.composing import documents_needed
        from adamas_cli.lab.bench.document import text_documents
        from adamas_cli.lab.bench.recording import STEPS

        assert target.texts is not None
        count, read = len(texts), context
        if shapes is None:
            target.require(context + STEPS, f"--len {context:,} with {STEPS} steps")
        elif target.context is not None:
            read = min(context, target.context - STEPS)
            count = max(count, documents_needed(context, read))
        return cls(context, text_documents(texts, target.texts, read + STEPS, count))


def _cells(row: RecordedRow) -> list[str]:
    return [
        row.text,
        row.shape,
        f"{row.context:,}",
        f"{row.budget:,}",
        f"{row.attended:,.0f}",
        f"{row.dense:,.1f}",
        row.dense_kernel,
        f"{row.step:,.1f}",
        f"{row.ratio:.2f}x",
        f"{row.median:,.1f}",
        f"{row.worst:,.1f}",
        f"{row.random:,.1f}",
        f"{row.to_random:.2f}x",
        _share(row.slower),
    ]


def _layer_cells(row: LayerRow) -> list[str]:
    return [
        row.text,
        row.shape,
        f"{row.context:,}",
        f"{row.budget:,}",
        str(row.layer),
        f"{row.median:,.1f}",
        f"{row.worst:,.1f}",
        f"{row.spread:.2f}x",
        _share(row.slower),
    ]


def _share(part: float | None) -> str:
    return NOTHING if part is None else f"{part:.1%}"
