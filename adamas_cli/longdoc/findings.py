"""The answers of parts and merges, and how they are grouped for the next merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from adamas_cli.longdoc.parts import Passage

_NAMED = 3  # maximum number of passages in a label


@dataclass(frozen=True)
class Finding:
    """The answer to one question, from one part or merged from several."""

    passages: tuple[Passage, ...]
    tokens: int  # of the documents in its prompt
    answer: str
    knows: bool
    resumed: bool

    def as_json(self) -> dict[str, object]:
        """A part as JSON."""
        return {
            "documents": [passage.as_json() for passage in self.passages],
            "tokens": self.tokens,
            "answer": self.answer,
            "knows": self.knows,
            "resumed": self.resumed,
        }


def merged_passages(findings: Sequence[Finding]) -> tuple[Passage, ...]:
    """The passages of all findings, neighbours of one document joined."""
    joined: list[Passage] = []
    for passage in chain.from_iterable(finding.passages for finding in findings):
        last = joined[-1] if joined else None
        if last is not None and last.path == passage.path and passage.first_line - last.last_line in (0, 1):
            both = Passage(passage.path, last.first_line, passage.last_line, last.section, False)
            joined[-1] = both
        else:
            joined.append(passage)
    return tuple(joined)


def label(passages: Sequence[Passage]) -> str:
    """Their name in a prompt: `book.txt:1-480`, or the first of many files and the number of others."""
    named = ", ".join(passage.label for passage in passages[:_NAMED])
    more = len(passages) - _NAMED
    return f"{named} and {more} more" if more > 0 else named


def grouped(sizes: Sequence[int], room: int) -> list[range]:
    """Groups of neighbours that fit into `room`; one that is too long forms its own group."""
    groups: list[range] = []
    start, filled = 0, 0
    for index, size in enumerate(sizes):
        if index > start and filled + size > room:
            groups.append(range(start, index))
            start, filled = index, 0
        filled += size
    if sizes:
        groups.append(range(start, len(sizes)))
    return groups
