"""The documents that will be read, and a count of everything that will not be."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum

from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.formats import notebook
from adamas_cli.documents.formats.trouble import EXTRAS, Trouble

_EXAMPLES = 5
_EXTRA = re.compile(r"adamas\[\w+\]")


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
    VENDORED = "vendored"
    GENERATED = "generated"
    MINIFIED = "minified"
    LOCK = "lock files"
    LFS_POINTER = "Git LFS pointers (git lfs pull fetches the files)"
    IMAGE = "pictures (--ocr always reads their text)"
    ARCHIVE = "archives (name them to read them)"


class Unread(str):
    """The format of what nothing here reads, and what would, such as `.pptx need adamas[office]`."""

    __slots__ = ()

    @classmethod
    def of(cls, suffix: str) -> Unread:
        """A format that no extra reads either."""
        return cls(f"{suffix} (not supported)")


def suffix_of(path: str) -> str:
    """The suffix that a format is named by, without that of gzip; `files` where there is none."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in (".gz", ".bz2", ".xz"):
        suffix = os.path.splitext(stem)[1]
    return suffix.lower() or "files"


def _agreeing(reason: str, count: int) -> str:
    return reason.replace(" need ", " needs ") if count == 1 else reason


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

    def add(self, path: str, found: Document | str, why: str = "") -> None:
        """Take what was found at `path`: a document, or the reason why there is none, and more about that."""
        if isinstance(found, Document):
            self.documents.append(found)
            return
        if isinstance(found, Trouble) and found in EXTRAS:
            found = Unread(f"{suffix_of(path)} {found}")
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
            f"{count:,} {_agreeing(reason, count)}" for reason, count in counts
        )
        if any(reason in LEFT_OUT for reason in self.skipped):
            line += "; --generated reads " + " and ".join(
                reason for reason, _ in counts if reason in LEFT_OUT
            )
        for extra in sorted({found[0] for reason in self.skipped if (found := _EXTRA.search(reason))}):
            line += f"; pip install '{extra}' reads them"
        return line
