"""The documents that will be read, and a count of everything that will not be."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.formats.trouble import Trouble

_EXAMPLES = 5


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
