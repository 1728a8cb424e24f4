"""A run: what is still to be asked, the rows as they come, the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from adamas_cli.documents.apart import Source
from adamas_cli.mapping.estimate import Estimate
from adamas_cli.mapping.job import Answered, Asked, Job
from adamas_cli.mapping.journal import SUFFIX, Journal
from adamas_cli.mapping.rows import Row, columns, failed, record
from adamas_cli.mapping.tables import write_table, writer_for
from adamas_cli.progress import Progress

LOST = "no worker could finish this document: each one that tried ended, perhaps for lack of memory"

Answers = Callable[[Sequence[Asked]], Iterator[Answered]]
"""Answers about documents, in any order; each at most once."""


@dataclass
class Report:
    """documents, rows, failed: of the table; the others: of this run. tokens_read: by the model, those of
    questions included; tokens_reused: found in memory or among kept documents instead.
    """

    output: str
    documents: int = 0
    rows: int = 0
    failed: int = 0
    answered: int = 0
    tokens_read: int = 0
    tokens_reused: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return asdict(self)

    def count(self, row: Row) -> None:
        """One more row of this run."""
        self.answered += 1
        self.tokens_read += row.tokens - row.reused
        self.tokens_reused += row.reused


@dataclass
class Run:
    """The table of a job over these sources. Raises UsageError for a file that cannot hold it; see `Journal`.

    retry: ask again where there was no answer. worded: how an error is put to the user.
    """

    job: Job
    sources: Sequence[Source]
    output: Path
    retry: bool = False
    worded: Callable[[str], str] = str

    def __post_init__(self) -> None:
        writer_for(self.output)

    def finish(self, answers: Callable[[], Answers], progress: Progress) -> Report:
        """Ask what has no row yet, then write the table. answers: begins the work; called if there is any."""
        began, report = time.monotonic(), Report(str(self.output))
        journal_file = self.output.with_name(self.output.name + SUFFIX)
        with Journal(journal_file, self.job.facts(), retry=self.retry) as journal:
            if asked := self._asked(journal):
                rows = sum(len(one.questions) for one in asked)
                if known := len(self.sources) * len(self.job.questions) - rows:
                    progress.note(f"{known:,} rows are in {journal_file}, {rows:,} are to come")
                self._ask(asked, answers(), journal, report, progress)
            self._write(journal, report)
        report.seconds = round(time.monotonic() - began, 3)
        return report

    def _asked(self, journal: Journal) -> list[Asked]:
        found = []
        for source in self.sources:
            missing = [
                text for text in self.job.questions if not journal.has(source.name, source.version, text)
            ]
            if missing:
                found.append(Asked(source, missing))
        return found

    def _ask(
        self, asked: list[Asked], answers: Answers, journal: Journal, report: Report, progress: Progress
    ) -> None:
        missing = {one.source.name: one for one in asked}
        estimate = Estimate(one.source for one in asked)
        with progress.task("answering", len(asked), "documents", estimate.remaining) as advance:
            for source, rows, seconds in answers(asked):
                if missing.pop(source.name, None) is not None:
                    self._keep(rows, journal, report)
                    estimate.add(source, seconds)
                    advance(1)
        for source, questions in missing.values():
            self._keep(failed(source, questions, LOST), journal, report)

    def _keep(self, rows: Sequence[Row], journal: Journal, report: Report) -> None:
        journal.add([replace(row, error=self.worded(row.error)) for row in rows])
        for row in rows:
            report.count(row)

    def _write(self, journal: Journal, report: Report) -> None:
        """Write the table, in the order of the sources and questions."""
        keys = ((source.name, source.version, text) for source in self.sources for text in self.job.questions)

        def records() -> Iterator[dict[str, object]]:
            for row in journal.rows(keys):
                report.rows += 1
                report.failed += bool(row.error)
                yield record(row, self.job.schema)

        write_table(self.output, columns(self.job.schema), records())
        report.documents = len(self.sources)
