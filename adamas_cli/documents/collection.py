"""The documents to read, and counts of everything that is skipped."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

from adamas_cli.documents.document import Document, shown_path
from adamas_cli.documents.encodings import Origin
from adamas_cli.documents.formats.trouble import EXTRAS, Trouble
from adamas_cli.documents.remark import Remark, summed, told

_EXAMPLES = 5
_LINES = 10  # maximum number of lines for documents with the same note
_EXTRA = re.compile(r"adamas\[\w+\]")


class Reason(StrEnum):
    """Why a chosen file is not read."""

    BINARY = "binary"
    TOO_LARGE = "over `max_file_size`"
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
    LFS_POINTER = "Git LFS pointers (git lfs pull fetches the files)"
    IMAGE = "pictures (`ocr` always reads their text)"
    ARCHIVE = "archives (name them to read them)"


# Reasons that a setting overrides; the comment names the setting.
LEFT_OUT = (Reason.VENDORED, Reason.GENERATED, Reason.MINIFIED, Reason.LOCK)  # generated
_HIDDEN = (Reason.HIDDEN, Reason.HIDDEN_FOLDER)  # hidden
_SECRET = (Reason.ENVIRONMENT, Reason.PRIVATE_KEY, Reason.CREDENTIALS, Reason.TOKEN)  # secrets


class Unread(str):
    """An unsupported format and the extra that reads it, such as `.pptx need adamas[office]`."""

    __slots__ = ()

    @classmethod
    def of(cls, suffix: str) -> Unread:
        """A format that no extra can read."""
        return cls(f"{suffix} (not supported)")


class LeftOut(NamedTuple):
    """A reason with details."""

    reason: Reason
    why: str


@dataclass
class Collection:
    """The documents in reading order, what was skipped by reason, and notes."""

    documents: list[Document] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # a few paths each

    forceable: bool = False  # whether a binary file was named by the user

    def add(self, path: str, found: Document | str, why: str = "") -> None:
        """Add what was found at `path`: a document, or the reason why there is none, with details `why`."""
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
        """For example `skipped 14: 9 binary, 3 over `max_file_size`, 2 unreadable`; None if nothing was."""
        if not self.skipped:
            return None
        counts = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        line = f"skipped {self.skipped.total():,}: " + ", ".join(
            f"{count:,} {_agreeing(reason, count)}" for reason, count in counts
        )
        if any(reason in LEFT_OUT for reason in self.skipped):
            line += "; `generated` reads " + " and ".join(
                reason for reason, _ in counts if reason in LEFT_OUT
            )
        if any(reason in _HIDDEN for reason in self.skipped):
            line += "; `hidden` reads hidden ones"
        if any(reason in _SECRET for reason in self.skipped):
            line += "; `secrets` reads secret ones"
        if self.forceable:
            line += "; `text` reads binary"
        for extra in sorted({found[0] for reason in self.skipped if (found := _EXTRA.search(reason))}):
            line += f"; pip install '{extra}' reads them"
        return line

    def note_lines(self) -> list[str]:
        """The notes, the remarks on documents and the guessed encodings: a line for each document, or one for
        all if there are many.
        """
        noted, left_out, guessed = {}, {}, {}
        for document in self.documents:
            if document.reading is not None and document.reading.encoding.origin is Origin.GUESSED:
                guessed[document.path] = document.reading.encoding.name
            noted[document.path] = [remark for remark in document.remarks if not remark.left_out]
            left_out[document.path] = [remark for remark in document.remarks if remark.left_out]
        return [*self.notes, *_lines("", noted), *_lines("left out: ", left_out), *_guesses(guessed)]


def suffix_of(path: str) -> str:
    """The suffix that names a file's format, without that of compression; `files` if it has none."""
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in (".gz", ".bz2", ".xz"):
        suffix = os.path.splitext(stem)[1]
    return suffix.lower() or "files"


def _agreeing(reason: str, count: int) -> str:
    return reason.replace(" need ", " needs ") if count == 1 else reason


def _guesses(encodings: dict[str, str]) -> Iterator[str]:
    advice = "by a guess; `encoding` names another"
    paths = list(encodings)
    yield from (f"{path}: read as {encodings[path]}, {advice}" for path in paths[:_LINES])
    if more := Counter(encodings[path] for path in paths[_LINES:]):
        names = ", ".join(f"{name} ({count:,})" for name, count in more.most_common())
        yield f"{more.total():,} more documents: read as {names}, {advice}"


def _lines(intro: str, remarks: dict[str, list[Remark]]) -> Sequence[str]:
    said = {path: of_document for path, of_document in remarks.items() if of_document}
    if len(said) <= _LINES:
        return [f"{path}: {intro}{told(of_document)}" for path, of_document in said.items()]
    return [f"{len(said):,} documents: {intro}{told(summed(chain.from_iterable(said.values())))}"]
