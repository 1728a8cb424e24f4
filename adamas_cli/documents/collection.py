"""The documents that will be read, and a count of everything that will not be."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.formats import notebook

_EXAMPLES = 5


class Reason(StrEnum):
    """Why something that was chosen is not read."""

    BINARY = "binary"
    TOO_LARGE = "over --max-file-size"
    NOTEBOOK_TOO_LARGE = f"over the {notebook.MAX_BYTES // 2**20} MiB for notebooks"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    LINK = "symlinked"
    BROKEN_LINK = "symlinked to nothing"
    SPECIAL = "special (device, pipe or socket)"
    SAME = "read under another name"
    VANISHED = "vanished"


@dataclass
class Collection:
    """The documents in the order in which they are read, and what was skipped, by reason."""

    documents: list[Document] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # a few paths each

    def add(self, path: str, found: Document | Reason) -> None:
        """Take what was found at `path`: a document, or the reason why there is none."""
        if isinstance(found, Document):
            self.documents.append(found)
            return
        self.skipped[found] += 1
        if len(self.examples[found]) < _EXAMPLES:
            self.examples[found].append(shown_path(path))

    def skipped_line(self) -> str | None:
        """Such as `skipped 14: 9 binary, 3 over --max-file-size, 2 unreadable`; None when nothing was."""
        if not self.skipped:
            return None
        counts = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        return f"skipped {self.skipped.total():,}: " + ", ".join(
            f"{count:,} {reason}" for reason, count in counts
        )
