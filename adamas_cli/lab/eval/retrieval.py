"""Does sparse attention find what full attention finds? Tasks with known answers: `adamas eval retrieval`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamas_cli.documents import Document
from adamas_cli.errors import UsageError
from adamas_cli.lab.eval.asking import Asked, Asker, Prompting, backend_name, plan
from adamas_cli.lab.eval.columns import Column, decimals, unless_zero
from adamas_cli.lab.eval.divergence import interval
from adamas_cli.lab.eval.haystack import Haystack, fit
from adamas_cli.lab.eval.ledger import Ledger, Record
from adamas_cli.lab.eval.reading import Way
from adamas_cli.lab.eval.tasks import Question, Task
from adamas_cli.lab.eval.workload import Workload

COLUMNS = (
    Column("task", "task"),
    Column("context", "context", decimals(0)),
    Column("depth, %", "depth", decimals(0), missing="all"),
    Column("method", "method"),
    Column("budget", "budget", unless_zero),
    Column("question", "question"),
    Column("answers", "answers", decimals(0)),
    Column("score (95 %)", "score", decimals(2), interval=True),
)
LONGEST_TOKEN = 40  # characters, on average over a text


@dataclass(frozen=True)
class Design:
    """What to measure. lengths: tokens of a prompt, document and question together; depths: percent;
    samples: documents for each task, length and depth.
    """

    tasks: Sequence[Task]
    lengths: Sequence[int]
    depths: Sequence[int]
    samples: int
    seed: int
    ways: Sequence[Way]


@dataclass(frozen=True)
class Text:
    """The bytes of a generated text, as a document's content."""

    data: bytes

    def blocks(self) -> Iterator[bytes]:
        """All bytes at once."""
        yield self.data


@dataclass(frozen=True)
class Exam:
    """One document, int32 [n], and the questions about it."""

    document: np.ndarray
    questions: tuple[Question, ...]
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Retrieval:
    """One run. settings: fields common to all of its rows; path: the document's name in the prompt."""

    design: Design
    haystack: Haystack
    prompting: Prompting
    path: str
    settings: Mapping[str, Any]
    product: str
    ledger: Ledger

    def check(self) -> None:
        """Raises UsageError if a task does not fit a length."""
        for task in self.design.tasks:
            for length in self.design.lengths:
                self.exam(task, length, task.documents(self.design.depths)[0], 0)

    def exam(self, task: Task, length: int, depths: Sequence[int | None], number: int) -> Exam:
        """Sample `number`: a prompt of `length` tokens, or as close below as cutting the text allows."""
        sample = task.sample(self.haystack, length, depths, self.design.seed, number)
        asked = tuple(
            Asked(index, one.text, self.prompting.question(one.text), task.max_tokens)
            for index, one in enumerate(sample.questions)
        )
        room = length - max(len(one.ids) for one in asked)

        def document(size: int) -> np.ndarray:
            data = sample.build(size).encode("utf-8", "replace")
            return self.prompting.document(Document(self.path, len(data), Text(data)))

        most = min(sample.most, LONGEST_TOKEN * length)
        size = fit(lambda size: len(document(size)), room, most)
        if size is None:
            raise UsageError(f"`len` {length:,} is too short for `tasks` {task.name}")
        if size == most:
            raise UsageError(f"`text` {self.path} is too short for `len` {length:,}. Give a longer text.")
        return Exam(document(size), sample.questions, asked)

    def plan(self, workload: Workload) -> None:
        """Count the remaining work."""
        for task, length, depths, number in self._documents():
            lengths = {
                way: [task.max_tokens] * len(found)
                for way, found in self._missing(task, length, depths, number).items()
            }
            plan(workload, length, lengths)

    def measure(self, asker: Asker | None) -> Iterator[Record]:
        """Each answer, from the ledger or given now; the rows of a task at a length follow its answers.

        asker: may be None if all answers are in the ledger.
        """
        scores: dict[tuple[Way, int | None], list[float]] = defaultdict(list)
        documents = list(self._documents())
        for index, (task, length, depths, number) in enumerate(documents):
            missing = self._missing(task, length, depths, number)
            fresh: dict[tuple[Way, int], Record] = {}
            if missing:
                assert asker is not None
                exam = self.exam(task, length, depths, number)
                asked = {way: [exam.asked[position] for position in found] for way, found in missing.items()}
                for way, one, said in asker.answers(exam.document, asked):
                    question = exam.questions[one.number]
                    fresh[way, one.number] = self._identity(task, length, question.depth, number, way) | {
                        "prompt_tokens": len(exam.document) + len(one.ids),
                        "asked": question.text,
                        "expected": list(question.expected),
                        "answer": said.text,
                        "answer_tokens": len(said.tokens),
                        "score": question.score(said.text),
                    }
                    self.ledger.add(fresh[way, one.number])
            for way in self.design.ways:
                for position, depth in enumerate(depths):
                    record = fresh.get((way, position))
                    if record is None:
                        record = self.ledger.find(self._identity(task, length, depth, number, way))
                    assert record is not None
                    scores[way, depth].append(record["score"])
                    yield record
            if documents[index + 1 : index + 2] and documents[index + 1][:2] == (task, length):
                continue
            yield from self._rows(task, length, scores)
            scores.clear()

    def _documents(self) -> Iterator[tuple[Task, int, tuple[int | None, ...], int]]:
        for task in self.design.tasks:
            for length in self.design.lengths:
                for depths in task.documents(self.design.depths):
                    for number in range(self.design.samples):
                        yield task, length, depths, number

    def _missing(
        self, task: Task, length: int, depths: Sequence[int | None], number: int
    ) -> dict[Way, list[int]]:
        """Positions in `depths` of the questions that have no answer in the ledger."""
        missing = {
            way: [
                position
                for position, depth in enumerate(depths)
                if self.ledger.find(self._identity(task, length, depth, number, way)) is None
            ]
            for way in self.design.ways
        }
        return {way: found for way, found in missing.items() if found}

    def _rows(
        self, task: Task, length: int, scores: Mapping[tuple[Way, int | None], list[float]]
    ) -> Iterator[Record]:
        """For each way, the score at each depth, and over all depths, with a null depth."""
        for way in self.design.ways:
            by_depth = {depth: found for (other, depth), found in scores.items() if other == way}
            if None not in by_depth and len(by_depth) > 1:
                by_depth[None] = [score for found in by_depth.values() for score in found]
            for depth, found in by_depth.items():
                identity = self._identity(task, length, depth, None, way)
                low, high = interval(np.array(found), self.design.seed)
                measured = {"answers": len(found), "score": float(np.mean(found))}
                record = identity | measured | {"score_low": low, "score_high": high}
                if self.ledger.find(identity) is None:
                    self.ledger.add(record)
                yield record

    def _identity(self, task: Task, length: int, depth: int | None, number: int | None, way: Way) -> Record:
        """The fields that identify a record: the answer to a sample, or a row over the samples."""
        kind = {"record": "row", "samples": self.design.samples}
        if number is not None:
            kind = {"record": "answer", "sample": number}
        return {
            **kind,
            **self.settings,
            "seed": self.design.seed,
            "task": task.name,
            "context": length,
            "depths": ",".join(map(str, self.design.depths)),
            "depth": depth,
            **way.identity,
            "question": way.question,
            "backend": backend_name(way.method, self.product),
        }
