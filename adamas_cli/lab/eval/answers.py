"""Does sparse attention answer as full attention does? On the user's own documents and questions:
`adamas eval answers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamas_cli.lab.eval.asking import Asked, Asker, backend_name, plan
from adamas_cli.lab.eval.columns import Column, decimals, unless_zero
from adamas_cli.lab.eval.divergence import interval
from adamas_cli.lab.eval.ledger import Ledger, Record
from adamas_cli.lab.eval.reading import FULL, Way
from adamas_cli.lab.eval.readings import DENSE
from adamas_cli.lab.eval.squad import contains, exact_match, f1, leading, word_f1
from adamas_cli.lab.eval.workload import Workload

COLUMNS = (
    Column("text", "text"),
    Column("context", "context", decimals(0)),
    Column("method", "method"),
    Column("budget", "budget", unless_zero),
    Column("answers", "answers", decimals(0)),
    Column("equal (95 %)", "equal", decimals(2), interval=True),
    Column("leading", "leading", decimals(2)),
    Column("diverges at", "diverges_at", decimals(0)),
    Column("F1 to full", "f1_full", decimals(2)),
    Column("exact", "exact_match", decimals(2)),
    Column("F1", "f1", decimals(2)),
    Column("contains (95 %)", "contains", decimals(2), interval=True),
)
AGAINST_FULL = ("equal", "leading", "diverges_at", "f1_full")
AGAINST_KNOWN = ("exact_match", "f1", "contains")


@dataclass(frozen=True)
class Examined:
    """One document, int32 [n], with its questions; known: the right answers to each question, if any."""

    name: str
    sha256: str
    document: np.ndarray
    asked: Sequence[Asked]
    known: Sequence[Sequence[str]]

    @property
    def context(self) -> int:
        """Tokens of the document and its longest question."""
        return len(self.document) + max(len(one.ids) for one in self.asked)


@dataclass(frozen=True)
class Answers:
    """One run. settings: fields common to all of its rows."""

    examined: Sequence[Examined]
    ways: Sequence[Way]
    settings: Mapping[str, Any]
    seed: int
    product: str
    ledger: Ledger

    def plan(self, workload: Workload) -> None:
        """Count the remaining work."""
        for one in self.examined:
            plan(workload, len(one.document), self._missing(one))

    def measure(self, asker: Asker | None) -> Iterator[Record]:
        """Each answer, from the ledger or given now; at the end, a row for each way.

        asker: may be None if all answers are in the ledger.
        """
        records: list[Record] = []
        for one in self.examined:
            found: dict[tuple[Way, int], Record] = {}
            for way in self.ways:
                for asked in one.asked:
                    record = self.ledger.find(self._identity(one, asked, way))
                    if record is not None:
                        found[way, asked.number] = record
            missing = self._missing(one)
            for way, asked, said in asker.answers(one.document, missing) if asker and missing else ():
                full = found.get((self.ways[0], asked.number))
                answer: Record = {"answer": said.text, "tokens": said.tokens}
                answer |= compare(said.tokens, said.tokens if full is None else full["tokens"])
                answer |= judge(said.text, one.known[asked.number])
                record = self._identity(one, asked, way) | answer
                self.ledger.add(record)
                found[way, asked.number] = record
            ordered = [found[way, asked.number] for way in self.ways for asked in one.asked]
            records += ordered
            yield from ordered
        for way in self.ways:
            yield self._row(way, [one for one in records if _way(one) == way])

    def _missing(self, one: Examined) -> dict[Way, list[Asked]]:
        """The questions that have no answer in the ledger."""
        missing = {
            way: [asked for asked in one.asked if self.ledger.find(self._identity(one, asked, way)) is None]
            for way in self.ways
        }
        return {way: asked for way, asked in missing.items() if asked}

    def _identity(self, one: Examined, asked: Asked, way: Way) -> Record:
        """The fields that identify the record of an answer."""
        return {
            "record": "answer",
            **self.settings,
            "text": one.name,
            "text_sha256": one.sha256,
            "context": len(one.document) + len(asked.ids),
            "asked": asked.text,
            "known": list(one.known[asked.number]),
            "max_tokens": asked.max_tokens,
            **self._of_way(way),
        }

    def _of_way(self, way: Way) -> Record:
        return {**way.identity, "backend": backend_name(way.method, self.product)}

    def _row(self, way: Way, answers: Sequence[Record]) -> Record:
        texts = list(dict.fromkeys(one.name for one in self.examined))
        row: Record = {
            "record": "row",
            **self.settings,
            "text": texts[0] if len(texts) == 1 else f"{len(texts)} documents",
            "text_sha256": ",".join(dict.fromkeys(one.sha256 for one in self.examined)),
            "context": max(one.context for one in self.examined),
            "max_tokens": self.examined[0].asked[0].max_tokens,
            **self._of_way(way),
            "asked": [asked.text for one in self.examined for asked in one.asked],
            "answers": len(answers),
            "answers_known": sum(bool(one["known"]) for one in answers),
        }
        identity = dict(row)
        for name in (*AGAINST_FULL, *AGAINST_KNOWN):
            values = [one[name] for one in answers if one[name] is not None]
            low, high = interval(np.array(values), self.seed) if values else (None, None)
            mean = float(np.mean(values)) if values else None
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        if self.ledger.find(identity) is None:
            self.ledger.add(row)
        return row


def compare(tokens: Sequence[int], full: Sequence[int]) -> Record:
    """Compare the tokens of an answer with those of full attention.

    equal: 1 or 0. leading: the share of the longer answer before the first difference. diverges_at: the index
    of that difference, None if the answers are equal. f1_full: F1 of the tokens.
    """
    same = leading(tokens, full)
    longer = max(len(tokens), len(full))
    equal = same == longer
    return {
        "equal": float(equal),
        "leading": same / longer if longer else 1.0,
        "diverges_at": None if equal else same,
        "f1_full": f1(tokens, full),
    }


def judge(answer: str, known: Sequence[str]) -> Record:
    """Compare an answer with the known ones; all None if none is known."""
    if not known:
        return dict.fromkeys(AGAINST_KNOWN)
    return {
        "exact_match": exact_match(answer, known),
        "f1": word_f1(answer, known),
        "contains": contains(answer, known),
    }


def _way(record: Record) -> Way:
    budget = 0 if record["method"] == FULL else record["budget"]
    return Way(record["method"], budget, read=record["read"] or DENSE)
