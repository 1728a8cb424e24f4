"""The documents that will be read, and a count of everything that will not be."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.formats.trouble import Trouble

_EXAMPLES = 5
_LINES = 10  # of documents about which the same is said
_PLURAL = re.compile(r"s\b")  # in "hidden elements", "pictures without a description"
_ADVICE = "--encoding names another"


def _names(encodings: Counter[str]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in encodings.most_common())


def _counted(kinds: Counter[str]) -> str:
    one = {kind: _PLURAL.sub("", kind, count=1) if count == 1 else kind for kind, count in kinds.items()}
    return ", ".join(f"{count:,} {one[kind]}" for kind, count in kinds.most_common())


class Reason(StrEnum):
    """Why something that was chosen is not read."""

    BINARY = "binary"
    TOO_LARGE = "over --max-file-size"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    LINK = "symlinked"
    BROKEN_LINK = "symlinked to nothing"
    SPECIAL = "special (device, pipe or socket)"
    SAME = "read under another name"
    VANISHED = "vanished"
    VENDORED = "vendored"
    GENERATED = "generated"
    MINIFIED = "minified"
    LOCK = "lock files"


LEFT_OUT = (Reason.VENDORED, Reason.GENERATED, Reason.MINIFIED, Reason.LOCK)  # unless --generated is given


@dataclass
class Collection:
    """The documents in the order in which they are read, what was skipped, by reason, and notes on some."""

    documents: list[Document] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # a few paths each
    left_out: defaultdict[str, Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )  # by document and kind
    guessed: dict[str, str] = field(default_factory=dict)  # encodings, by document
    forceable: bool = False  # whether the user named one of the binary files

    def add(self, path: str, found: Document | Reason | Trouble, why: str = "") -> None:
        """Take what was found at `path`: a document, or the reason why there is none, and more about that."""
        if isinstance(found, Document):
            self.documents.append(found)
            return
        self.skipped[found] += 1
        if len(self.examples[found]) < _EXAMPLES:
            shown = shown_path(path)
            self.examples[found].append(f"{shown} ({why})" if why else shown)

    def note_lines(self) -> list[str]:
        """The notes, what was left out of documents by kind and count, and the encodings that were guessed:
        a line for each document, or one for all where there are many.
        """
        lines = list(self.notes)
        if len(self.left_out) <= _LINES:
            lines += [f"{path}: {_counted(kinds)} left out" for path, kinds in self.left_out.items()]
        else:
            total = sum(self.left_out.values(), Counter())
            lines.append(f"{_counted(total)} left out of {len(self.left_out):,} documents")
        shown = dict(list(self.guessed.items())[:_LINES])
        lines += [f"{path}: read as {name}, by a guess; {_ADVICE}" for path, name in shown.items()]
        if more := Counter(name for path, name in self.guessed.items() if path not in shown):
            lines.append(f"{more.total():,} more documents: read as {_names(more)}, by a guess; {_ADVICE}")
        return lines

    def skipped_line(self) -> str | None:
        """Such as `skipped 14: 9 binary, 3 over --max-file-size, 2 unreadable`; None when nothing was."""
        if not self.skipped:
            return None
        counts = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        line = f"skipped {self.skipped.total():,}: " + ", ".join(
            f"{count:,} {reason}" for reason, count in counts
        )
        if any(reason in LEFT_OUT for reason in self.skipped):
            line += "; --generated reads " + " and ".join(
                reason for reason, _ in counts if reason in LEFT_OUT
            )
        if self.forceable:
            line += "; --text reads binary"
        return line
