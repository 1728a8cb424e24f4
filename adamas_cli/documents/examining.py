"""Turns one path into a document, or a reason why there is none."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

from adamas_cli.documents import latex, secrets
from adamas_cli.documents.blank import is_blank
from adamas_cli.documents.candidate import Candidate
from adamas_cli.documents.collection import Collection, LeftOut, Reason, Unread, suffix_of
from adamas_cli.documents.conversion import Conversion
from adamas_cli.documents.converted import ConvertedText
from adamas_cli.documents.decoding import HEAD_BYTES, is_binary
from adamas_cli.documents.document import Content, Document, File, shown_path
from adamas_cli.documents.filtering import Selection
from adamas_cli.documents.formats import signs
from adamas_cli.documents.formats.recognize import TEXTUAL, WRITTEN, Format, recognized
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.gzipped import Gzipped, compression
from adamas_cli.documents.ocr_options import ocr_options
from adamas_cli.documents.surveying import Reading, survey
from adamas_cli.documents.web import Page

Found = Document | Reason | LeftOut | Unread

# Suffixes of text files: NUL bytes in them are flaws even if the user has not named the file.
_TEXT_SUFFIXES = frozenset([".log", ".txt", ".md", ".csv", ".tsv", ".out", ".err"])


class Examiner:
    """Turns candidates into documents of `collection`."""

    def __init__(self, selection: Selection, collection: Collection, conversion: Conversion) -> None:
        self._chosen = selection
        self._ocr = ocr_options(selection)
        self._needs_ocr = selection.ocr != "never" and not self._ocr
        self._collection = collection
        self._conversion = conversion

    def take(self, path: str, candidate: Candidate) -> Document | None:
        """Add what is found at a normalized path; return the document, if there is one."""
        return self.add(path, lambda: self._examined(path, candidate))

    def fetched(self, page: Page) -> Document | None:
        """Add what was fetched from the web; return the document, if there is one."""
        return self.add(page.address, lambda: self._fetched(page))

    def add(self, path: str, examine: Callable[[], Found | None]) -> Document | None:
        """Add what `examine` finds at a path, unless it returns None because it has added it itself.
        UnreadableError and OSError become reasons.
        """
        try:
            found = examine()
        except UnreadableError as error:
            self._collection.add(path, error.trouble, error.why)
            return None
        except FileNotFoundError:
            found = Reason.VANISHED
        except OSError:
            found = Reason.UNREADABLE
        if found is None:
            return None
        if isinstance(found, Document) and self._chosen.line_numbers:
            found = replace(found, numbered=True)
        if isinstance(found, LeftOut):
            self._collection.add(path, *found)
            return None
        self._collection.add(path, found)
        return found if isinstance(found, Document) else None

    @property
    def converts(self) -> bool:
        """Whether formats other than text are converted."""
        return not self._chosen.text

    def recognized(self, head: bytes, name: str) -> Format | None:
        """The format to convert from; None if the user forces text."""
        return recognized(head, name) if self.converts else None

    def binary(self, head: bytes, name: str, *, named: bool) -> Reason | Unread | None:
        """The kind of a non-text file, by its first bytes. named: by the user, who can force it."""
        patient = named or os.path.splitext(name)[1].lower() in _TEXT_SUFFIXES
        if not self.converts or not is_binary(head, patient=patient):
            return None
        suffix = signs.unread_kind(head, name)
        self._collection.forceable |= named and not suffix
        return Unread.of(suffix) if suffix else Reason.BINARY

    def picture(self, path: str, *, named: bool) -> Reason | Unread | None:
        """Why a picture is not read; None if it is. named: by the user."""
        if not named and self._chosen.ocr != "always":
            return Reason.IMAGE
        if self._ocr:
            return None
        return Unread(f"{suffix_of(path)} {Trouble.NO_OCR}") if self._needs_ocr else Reason.IMAGE

    def text(self, name: str, content: Content, size: int, head: bytes, *, named: bool) -> Document | Reason:
        """The text in `content`, which begins with `head`, after surveying all of it. named: by the user."""
        return self._read_as(name, content, size, head, self._reading(content.blocks(), named=named))

    def converted(
        self,
        path: str,
        name: str,
        size: int,
        kind: Format,
        content: Content,
        *,
        named: bool = True,
        **options: Any,
    ) -> Document | Reason:
        """The file at `path`, called `name`, which holds `content`, as a document. options: the reader's
        options. A file that only looked like a textual format is read as plain text.

        Raises UnreadableError, OSError.
        """
        shown = shown_path(name)
        if kind not in TEXTUAL:
            if kind in (Format.PDF, Format.IMAGE):
                options |= self._ocr
            return self._sections(shown, size, self._conversion.text(path, shown, kind, **options), kind)
        reading = self._reading(content.blocks(), named=named)
        try:
            text = self._conversion.text(path, shown, kind, encoding=reading.encoding.codec, **options)
        except UnreadableError as error:
            if error.trouble is not Trouble.NO_TEXT:
                self._collection.notes.append(f"{shown}: {error.trouble}, so its source is read")
            elif kind is Format.NOTEBOOK:
                return Reason.BLANK
            return self._read_as(name, content, size, b"", reading)  # a page of scripts only is source code
        self._say_contrary(shown, reading)
        return replace(self._sections(shown, size, text, kind), reading=reading)

    def unpacked(self, name: str, content: Gzipped, limit: int | None, *, named: bool = True) -> Found:
        """The content of a compressed file, of at most `limit` bytes. It is unpacked to the end once, because
        damage shows only there. Raises UnreadableError, OSError.
        """
        head = b""
        for block in content.blocks():
            head += block
            if len(head) >= HEAD_BYTES:
                break
        head = head[:HEAD_BYTES]
        inner = os.path.splitext(name)[0]
        kind = self.recognized(head, inner)
        if kind is Format.ARCHIVE:
            return Reason.ARCHIVE
        if kind is Format.IMAGE:
            return Reason.IMAGE
        if kind is None and (unread := self.binary(head, inner, named=named)) is not None:
            return unread
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
        return self.text(name, content, size, head, named=named) if size else Reason.EMPTY

    def _examined(self, path: str, candidate: Candidate) -> Found:
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
        by_name = None if self._chosen.secrets else secrets.by_name(candidate.below)
        if by_name is not None:
            if not candidate.named:
                return by_name
            self._note_secret(path, by_name)
        limit = None if candidate.named else self._chosen.max_file_size
        if limit is not None and size > limit:
            return Reason.TOO_LARGE
        with closing(candidate.blocks()) as blocks:
            return self._opened(path, candidate, next(blocks, b""), blocks, limit)

    def _opened(
        self, path: str, candidate: Candidate, first: bytes, rest: Iterable[bytes], limit: int | None
    ) -> Found:
        """The content of a file: its `first` block and the `rest`."""
        head, size, named = first[:HEAD_BYTES], candidate.status.st_size, candidate.named
        file = File(candidate.path, size, candidate.holder)
        kind = self.recognized(head, path)
        if kind is Format.ARCHIVE:
            return Reason.ARCHIVE
        if kind is Format.IMAGE and (unread := self.picture(path, named=named)) is not None:
            return unread
        if kind is not None:
            if kind in WRITTEN and (secret := self._secret(path, candidate, first)) is not None:
                return secret
            return self.converted(candidate.path, path, size, kind, file, named=named)
        packed = compression(head)
        if packed is not None:
            return self.unpacked(path, Gzipped(file, size, packed), limit, named=named)
        if head.count(0) == len(head):
            head = candidate.head_after_hole() or head
        if (no_text := self.binary(head, path, named=named)) is not None:
            return no_text
        if signs.is_lfs_pointer(head, size):
            return Reason.LFS_POINTER
        if candidate.origins is not None:
            reason = candidate.origins.by_head(candidate.below, head)
            if reason is not None:
                return reason
        if (secret := self._secret(path, candidate, first)) is not None:
            return secret
        reading = self._reading(chain([first], rest), named=named)
        if named and self.converts and latex.takes_in(candidate.path):
            expanded = latex.Expanded.of(candidate.path, self._chosen.encoding)
            self._collection.notes += expanded.notes(shown_path(path))
            return Document(shown_path(path), size, expanded, reading)
        return self._read_as(path, file, size, head, reading)

    def _fetched(self, page: Page) -> Found:
        status = os.stat(page.path)
        size = status.st_size
        if page.is_page and size and self.converts:
            file = File(page.path, size, page)
            options: dict[str, Any] = {"address": page.address, "whole": self._chosen.whole_pages}
            return self.converted(page.path, page.address, size, Format.ARTICLE, file, **options)
        found = self._examined(page.path, Candidate(page.path, status, holder=page))
        return replace(found, path=page.address) if isinstance(found, Document) else found

    def _sections(self, shown: str, size: int, text: ConvertedText, kind: Format) -> Document:
        """A converted text as a document. Raises UnreadableError if all pages are empty."""
        if text.empty:
            note = f"{shown}: {text.empty:,} of {text.pages:,} pages have no text (scanned?)"
            if self._needs_ocr:
                note += "; pip install 'adamas[ocr]' reads scans"
            self._collection.notes.append(note)
        if text.pages and text.empty == text.pages:
            raise UnreadableError(Trouble.SCANNED)
        return Document(shown, size, text, converted_from=kind)

    def _reading(self, blocks: Iterable[bytes], *, named: bool) -> Reading:
        return survey(blocks, self._chosen.encoding, forced=self._chosen.text, keep_utf8=not named)

    def _read_as(
        self, name: str, content: Content, size: int, head: bytes, reading: Reading
    ) -> Document | Reason:
        """The text in `content`, which begins with `head`, if that is known."""
        document = Document(shown_path(name), size, content, reading)
        if head and is_blank(document, head):
            return Reason.BLANK
        self._say_contrary(document.path, reading)
        return document

    def _say_contrary(self, shown: str, reading: Reading) -> None:
        encoding = reading.encoding
        if encoding.contrary:
            self._collection.notes.append(f"{shown}: declares {encoding.contrary}, but is in {encoding.name}")

    def _secret(self, path: str, candidate: Candidate, first: bytes) -> LeftOut | None:
        """Why a file must not be read; if the user named it, only a note."""
        if self._chosen.secrets or (candidate.named and secrets.by_name(candidate.below) is not None):
            return None
        if candidate.named:  # only its beginning is examined
            found = secrets.by_content(candidate.below, [first[:HEAD_BYTES]])
            if found is not None:
                self._note_secret(path, found.reason)
            return None
        if len(first) == candidate.status.st_size:
            return secrets.by_content(candidate.below, [first])
        with closing(candidate.blocks()) as blocks:
            return secrets.by_content(candidate.below, blocks)

    def _note_secret(self, path: str, reason: Reason) -> None:
        self._collection.notes.append(f"{shown_path(path)} is {reason}; it is read because it was named")
