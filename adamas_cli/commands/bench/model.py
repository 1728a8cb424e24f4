"""`adamas bench --len`: prefill and decode of a model, compared with full attention and other engines."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.commands.bench.shared import Record, parse_lengths, say
from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.lab.bench.document import Document
    from adamas_cli.lab.bench.measurement import Measurement
    from adamas_cli.lab.bench.rivals import Rival
    from adamas_cli.lab.bench.target import Target
    from adamas_cli.planning.needs import Bytes
    from adamas_cli.settings import DecodingSettings, ModelSettings
    from adamas_cli.terminal.display import Display


@dataclass(frozen=True)
class Job:
    """What to measure. environment: for the other engines' processes. lengths: as on the command line.
    batches: numbers of answers that decode together; single answers are always measured. own: over documents
    of their own.
    """

    lengths: str
    shape: str | None
    text: Path | None
    generated: int
    repeats: int
    others: Sequence[str]
    environment: Mapping[str, str]
    batches: Sequence[int] = ()
    own: bool = False

    def measure(self, model: ModelSettings, attention: DecodingSettings) -> Iterator[tuple[Record, str]]:
        """A record and a Markdown line about the machine, then one of each for every measured row.

        Raises UsageError, ModelUnavailableError and OverContextError before anything is measured.
        """
        from adamas_cli.lab.bench.contention import NOTICEABLE, Contention
        from adamas_cli.lab.bench.machine import Machine
        from adamas_cli.lab.bench.measurement import Rows
        from adamas_cli.lab.bench.rivals import find_rival
        from adamas_cli.lab.bench.table import markdown_head, markdown_row
        from adamas_cli.machine.threads import use_threads
        from adamas_cli.terminal.display import Display

        lengths = sorted(parse_lengths(self.lengths))
        with Display(answers=None, notes=sys.stderr) as display:
            target, document = self._subject(lengths[-1], model, display)
        rivals = [find_rival(name, target, model) for name in dict.fromkeys(self.others)]
        threads = use_threads(model.threads)
        machine = Machine.of(target.device, attention.backend, target.dtype, model.gpus)
        settings = {"model": target.name, "text": document.text, **machine.as_json()}
        names = [rival.name for rival in rivals]
        rows = Rows(settings, names, machine.copy, batches=bool(self.batches))
        yield settings, f"{target.name}; {machine.about}\n\n{markdown_head(rows.titles)}"
        job = {
            "ids": document.ids.tolist(),
            "lengths": lengths,
            "generated": self.generated,
            "repeats": self.repeats,
            "threads": threads,
        }
        contention = Contention()
        for measured in self._measurements(target, document, lengths, rivals, job, model, attention):
            cores = contention.cores()
            if cores > NOTICEABLE:
                say(
                    f"{measured.engine}, {measured.test}: other programs kept {cores:.1f} cores busy; "
                    "this row and ratios to it are unreliable"
                )
            row = rows.row(measured, cores)
            yield row, markdown_row(rows.cells(row))

    def _subject(self, longest: int, model: ModelSettings, display: Display) -> tuple[Target, Document]:
        """The model and the document that it reads."""
        from adamas_cli.lab.bench.document import random_document, text_document
        from adamas_cli.lab.bench.model import tokens_needed
        from adamas_cli.lab.bench.target import model_target, shape_target

        needed = tokens_needed(longest, self.generated)
        if self.shape is not None:
            if self.text is not None:
                raise UsageError("--text needs a tokenizer and --shape has none: leave out one of them")
            target = shape_target(self.shape, needed, model, display)
        else:
            target = model_target(model, display)
        target.require(needed, f"--len {longest:,} with a question and an answer of {self.generated:,}")
        if self.text is None or target.texts is None:
            return target, random_document(target.vocabulary, needed)
        return target, text_document(self.text, target.texts, needed)

    def _measurements(
        self,
        target: Target,
        document: Document,
        lengths: Sequence[int],
        rivals: Sequence[Rival],
        job: Mapping[str, object],
        model: ModelSettings,
        attention: DecodingSettings,
    ) -> Iterator[Measurement]:
        """Other engines first: our rows are compared with theirs, and memory holds one model at a time."""

        from adamas_cli.engine.attention import AttentionSettings
        from adamas_cli.lab.bench.model import ModelBench
        from adamas_cli.terminal.display import Display

        if target.device.type == "cuda":
            say(f"memory: {self._plan(target, lengths, model, attention).line}")
        for rival in rivals:
            yield from rival.measure(job, self.environment)
        with Display(answers=None, notes=sys.stderr) as display:
            loaded = target.load(display)
        settings = AttentionSettings.of(_compared(attention))
        bench = ModelBench(
            loaded,
            settings,
            document,
            self.generated,
            self.repeats,
            attention.prefill_chunk,
            say,
            [count for count in self.batches if count > 1],
            self.own,
        )
        yield from bench.measure(lengths)

    def _plan(
        self, target: Target, lengths: Sequence[int], model: ModelSettings, attention: DecodingSettings
    ) -> Bytes:
        """The GPU memory that the longest length will need. Raises OutOfMemoryError if that is more than it
        has.
        """
        from adamas_cli.lab.bench.model import tokens_needed
        from adamas_cli.planning.decision import decide
        from adamas_cli.planning.facts import config_facts, machine_facts

        machine = machine_facts(str(target.device))
        facts = config_facts(target.config(), target.directory, target.gguf)
        needs = decide(
            facts, machine, model, _compared(attention), tokens_needed(lengths[-1], self.generated)
        ).bytes
        needs.require(
            machine.memory,
            str(target.device),
            f"{target.name} at --len {lengths[-1]:,}",
            "Give less --len, a smaller model or --quantization.",
            machine.host,
        )
        return needs


def _compared(attention: DecodingSettings) -> DecodingSettings:
    """Sparse attention at every length, to compare with full attention; only full if the user asks for it."""
    return replace(attention, attn="full" if attention.attn == "full" else "adamas")
