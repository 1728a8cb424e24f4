"""The documents that will be read, and a count of everything that will not be."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.formats import notebook
from adamas_cli.documents.formats.trouble import Trouble

_EXAMPLES = 5


class Reason(StrEnum):
    """Why something that was chosen is not read."""

    BINARY = "binary"
    TOO_LARGE = "over `max_file_size`"
    NOTEBOOK_TOO_LARGE = f"over the {notebook.MAX_BYTES // 2**20} MiB for notebooks"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    BLANK = "blank"
    LINK = "symlinked"
    BROKEN_LINK = "symlinked to nothing"
    SPECIAL = "special (device, pipe or socket)"
    SAME = "read under another name"
    VANISHED = "vanished"
    VENDORED = "vendored"
    GENERATED = "generated"
    MINIFIED = "minified"
    LOCK = "lock files"
    HIDDEN = "hidden"
    HIDDEN_FOLDER = "hidden folders"
    ENVIRONMENT = "secret (environment files)"
    PRIVATE_KEY = "secret (private keys)"
    CREDENTIALS = "secret (credentials)"
    TOKEN = "secret (with access tokens)"


# What is read all the same where the setting of that name says so.
LEFT_OUT = (Reason.VENDORED, Reason.GENERATED, Reason.MINIFIED, Reason.LOCK)  # generated
_HIDDEN = (Reason.HIDDEN, Reason.HIDDEN_FOLDER)  # hidden
_SECRET = (Reason.ENVIRONMENT, Reason.PRIVATE_KEY, Reason.CREDENTIALS, Reason.TOKEN)  # secrets


class LeftOut(NamedTuple):
    """A reason with more about it, for those who look closer."""

    reason: Reason
    why: str


@dataclass
class Collection:
    """The documents in the order in which they are read, what was skipped, by reason, and notes on some."""

    documents: list[Document] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # a few paths each

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
        """Such as `skipped 14: 9 binary, 3 over `max_file_size`, 2 unreadable`; None when nothing was."""
        if not self.skipped:
            return None
        counts = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        line = f"skipped {self.skipped.total():,}: " + ", ".join(
            f"{count:,} {reason}" for reason, count in counts
        )
        if any(reason in LEFT_OUT for reason in self.skipped):
            line += "; `generated` reads " + " and ".join(
                reason for reason, _ in counts if reason in LEFT_OUT
            )
        if any(reason in _HIDDEN for reason in self.skipped):
            line += "; `hidden` reads hidden ones"
        if any(reason in _SECRET for reason in self.skipped):
            line += "; `secrets` reads secret ones"
        return line
