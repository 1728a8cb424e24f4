"""What becomes of one path: a document, or the reason why there is none."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import chain

from adamas_cli.documents.collection import Collection, Reason
from adamas_cli.documents.conversion import Conversion
from adamas_cli.documents.converted import ConvertedText
from adamas_cli.documents.decoding import HEAD_BYTES, is_binary
from adamas_cli.documents.document import BLOCK_BYTES, Content, Document, File, shown_path
from adamas_cli.documents.encodings import Origin
from adamas_cli.documents.filtering import Selection
from adamas_cli.documents.formats.recognize import TEXTUAL, Format, recognized
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.generated import Origins
from adamas_cli.documents.gzipped import MAGIC, Gzipped
from adamas_cli.documents.surveying import Reading, survey

# Names of text, in which NUL bytes are flaws even where the user has not named the file.
_TEXT_SUFFIXES = frozenset([".log", ".txt", ".md", ".csv", ".tsv", ".out", ".err"])


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that may become a document, and its own status.

    `folder`: the one that the user named, above it; None for a file that the user named itself, which is read
    whatever its size and origin. `origins`: of the files below that folder, where they count.
    """

    path: str
    status: os.stat_result
    folder: str | None = None
    origins: Origins | None = None

    @property
    def below(self) -> str:
        """What leads to it from `folder`."""
        return self.path[len(self.folder or "") :].lstrip("/")


class Examiner:
    """Turns candidates into documents of `collection`."""

    def __init__(self, selection: Selection, collection: Collection, conversion: Conversion) -> None:
        self._max_size = selection.max_file_size
        self._numbered = selection.line_numbers
        self._encoding = selection.encoding
        self._forced = selection.text
        self._collection = collection
        self._conversion = conversion

    def take(self, path: str, candidate: Candidate) -> Document | None:
        """Add what is found under a normalized path; the document, if it is one."""
        return self.add(path, lambda: self._examined(path, candidate))

    def add(self, path: str, examine: Callable[[], Document | Reason]) -> Document | None:
        """Add what `examine` finds at a path, or why it raises UnreadableError or OSError."""
        try:
            found = examine()
        except UnreadableError as error:
            self._collection.add(path, error.trouble, error.why)
            return None
        except FileNotFoundError:
            found = Reason.VANISHED
        except OSError:
            found = Reason.UNREADABLE
        if isinstance(found, Document) and self._numbered:
            found = replace(found, numbered=True)
        self._collection.add(path, found)
        return found if isinstance(found, Document) else None

    def text(self, name: str, content: Content, size: int, *, named: bool) -> Document:
        """The text in `content` as a document, after a look at all of it. named: by the user."""
        return self._read_as(name, content, size, self._reading(name, content.blocks(), named=named))

    def converted(
        self, path: str, name: str, size: int, kind: Format, content: Content, *, named: bool = True
    ) -> Document:
        """The file at `path`, which is called `name` and holds `content`, as a document.

        One that only looked like a format of text is read as the text it is. Raises UnreadableError, OSError.
        """
        shown = shown_path(name)
        if kind not in TEXTUAL:
            return self._sections(shown, size, self._conversion.text(path, shown, kind))
        reading = self._reading(name, content.blocks(), named=named)
        try:
            text = self._conversion.text(path, shown, kind, reading.encoding.codec)
        except UnreadableError as error:
            if error.trouble is not Trouble.NO_TEXT:  # a page of scripts alone is source code
                self._collection.notes.append(f"{shown}: {error.trouble}, so it is read as it is written")
            return self._read_as(name, content, size, reading)
        self._say(shown, reading, text=False)
        return replace(self._sections(shown, size, text), reading=reading)

    def _sections(self, shown: str, size: int, text: ConvertedText) -> Document:
        for note, count in text.notes:
            if count:
                self._collection.left_out[shown][note] += count
            else:
                self._collection.notes.append(f"{shown}: {note}")
        if text.empty:
            note = f"{shown}: {text.empty:,} of {text.pages:,} pages have no text (scanned?)"
            self._collection.notes.append(note)
        if text.pages and text.empty == text.pages:
            raise UnreadableError(Trouble.SCANNED)
        return Document(shown, size, text)

    def _reading(self, name: str, blocks: Iterable[bytes], *, named: bool) -> Reading:
        return survey(blocks, self._encoding, forced=self._forced, keep_utf8=not named)

    def _read_as(self, name: str, content: Content, size: int, reading: Reading) -> Document:
        shown = shown_path(name)
        self._say(shown, reading)
        return Document(shown, size, content, reading)

    def _say(self, shown: str, reading: Reading, *, text: bool = True) -> None:
        """Note how a document is read; text: as the text it is."""
        encoding = reading.encoding
        if encoding.origin is Origin.GUESSED:
            self._collection.guessed[shown] = encoding.name
        if encoding.contrary:
            self._collection.notes.append(f"{shown}: declares {encoding.contrary}, but is in {encoding.name}")
        if text and reading.codes:
            self._collection.left_out[shown]["terminal codes"] += reading.codes
        if text and reading.controls:
            kind = "control characters" if self._forced else "NUL bytes"
            self._collection.left_out[shown][kind] += reading.controls

    def is_binary(self, head: bytes, name: str, *, named: bool) -> bool:
        """Whether a file is left out for what it begins with. named: by the user, who can force it."""
        if self._forced:
            return False
        suffix = os.path.splitext(name)[1].lower()
        found = is_binary(head, patient=named or suffix in _TEXT_SUFFIXES)
        self._collection.forceable |= found and named
        return found

    def recognized(self, head: bytes, name: str) -> Format | None:
        """The format to convert from, unless the user forces it to be read as text."""
        return None if self._forced else recognized(head, name)

    def _examined(self, path: str, candidate: Candidate) -> Document | Reason:
        mode, size = candidate.status.st_mode, candidate.status.st_size
        if stat.S_ISLNK(mode):
            return Reason.LINK if os.path.exists(candidate.path) else Reason.BROKEN_LINK
        if not stat.S_ISREG(mode):
            return Reason.SPECIAL
        if not size:
            return Reason.EMPTY
        if candidate.origins is not None:
            reason = candidate.origins.by_path(candidate.below)
            if reason is not None:
                return reason
        named = candidate.folder is None
        limit = None if named else self._max_size
        if limit is not None and size > limit:
            return Reason.TOO_LARGE
        with closing(_blocks(candidate.path, size)) as blocks:
            first = next(blocks, b"")
            head = first[:HEAD_BYTES]
            file = File(candidate.path, size)
            kind = self.recognized(head, path)
            if kind is not None:
                return self.converted(candidate.path, path, size, kind, file, named=named)
            if head.startswith(MAGIC):
                return self.unpacked(path, Gzipped(file, size), limit, named=named)
            if head.count(0) == len(head):
                head = _head_after_hole(candidate.path, size) or head
            if self.is_binary(head, path, named=named):
                return Reason.BINARY
            if candidate.origins is not None:
                reason = candidate.origins.by_head(candidate.below, head)
                if reason is not None:
                    return reason
            reading = self._reading(path, chain([first], blocks), named=named)
        return self._read_as(path, file, size, reading)

    def unpacked(
        self, name: str, content: Gzipped, limit: int | None, *, named: bool = True
    ) -> Document | Reason:
        """What is in a gzip file, of at most `limit` bytes: unpacked once to the end, because damage shows
        only there. Raises UnreadableError, OSError.
        """
        head = b""
        for block in content.blocks():
            head += block
            if len(head) >= HEAD_BYTES:
                break
        head = head[:HEAD_BYTES]
        inner = os.path.splitext(name)[0]
        kind = self.recognized(head, inner)
        if kind is None and self.is_binary(head, inner, named=named):
            return Reason.BINARY
        size = 0
        with tempfile.NamedTemporaryFile() if kind else nullcontext() as copy:
            for block in content.blocks():
                size += len(block)
                if limit is not None and size > limit:
                    return Reason.TOO_LARGE
                if copy is not None:
                    copy.write(block)
            if kind is not None and copy is not None:
                copy.flush()
                return self.converted(copy.name, name, size, kind, content, named=named)
        return self.text(name, content, size, named=named) if size else Reason.EMPTY


def _head_after_hole(path: str, size: int) -> bytes:
    """The first bytes after the NUL bytes that a file begins with.

    A log begins so that was emptied while its program went on writing where the old end was.
    """
    with closing(_blocks(path, size)) as blocks:
        return next((text[:HEAD_BYTES] for block in blocks if (text := block.lstrip(b"\0"))), b"")


def _blocks(path: str, size: int) -> Generator[bytes]:
    """The first `size` bytes of a file, fewer where it shrinks meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits, even if a pipe has taken its place
    try:
        while size and (block := os.read(descriptor, min(size, BLOCK_BYTES))):
            size -= len(block)
            yield block
    finally:
        os.close(descriptor)
