"""What becomes of one path: a document, or the reason why there is none."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from adamas_cli.documents import latex, secrets
from adamas_cli.documents.archives import Folder
from adamas_cli.documents.blank import is_blank
from adamas_cli.documents.collection import Collection, LeftOut, Reason, Unread, suffix_of
from adamas_cli.documents.conversion import Conversion
from adamas_cli.documents.decoding import HEAD_BYTES, is_binary
from adamas_cli.documents.document import BLOCK_BYTES, Document, File, shown_path
from adamas_cli.documents.filtering import Selection
from adamas_cli.documents.formats import notebook, signs
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.generated import Origins
from adamas_cli.documents.gzipped import Gzipped, compression
from adamas_cli.documents.ocr_options import ocr_options
from adamas_cli.documents.web import Page

Found = Document | Reason | LeftOut | Unread


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path that may become a document, and its own status.

    `folder`: the one that the user named, or an archive, above it; None for a file that the user named
    itself, which is read whatever its size and origin. `origins`: of the files below that folder, where they
    count. `holder`: what removes the file when nothing holds it any more.
    """

    path: str
    status: os.stat_result
    folder: Folder | None = None
    origins: Origins | None = None
    holder: object | None = None

    @property
    def below(self) -> str:
        """What leads to it from `folder`."""
        return self.path[len(self.folder.path if self.folder else "") :].lstrip("/")


class Examiner:
    """Turns candidates into documents of `collection`."""

    def __init__(self, selection: Selection, collection: Collection, conversion: Conversion) -> None:
        self._max_size = selection.max_file_size
        self._secrets = selection.secrets
        self._numbered = selection.line_numbers
        self._ocr = ocr_options(selection)
        self._needs_ocr = selection.ocr != "never" and not self._ocr
        self._pictures_in_folders = selection.ocr == "always"
        self._collection = collection
        self._conversion = conversion

    def take(self, path: str, candidate: Candidate) -> Document | None:
        """Add what is found under a normalized path; the document, if it is one."""
        return self.add(path, lambda: self._examined(path, candidate))

    def add(self, path: str, examine: Callable[[], Found | None]) -> Document | None:
        """Add what `examine` finds at a path, if it has not done so itself, or why it raises UnreadableError
        or OSError.
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
        if isinstance(found, Document) and self._numbered:
            found = replace(found, numbered=True)
        if isinstance(found, LeftOut):
            self._collection.add(path, *found)
            return None
        self._collection.add(path, found)
        return found if isinstance(found, Document) else None

    def converted(self, path: str, name: str, size: int, kind: Format, **options: Any) -> Document:
        """The file at `path`, which is called `name`, as a document. options: the reader's.

        Raises UnreadableError, OSError.
        """
        shown = shown_path(name)
        if kind in (Format.PDF, Format.IMAGE):
            options |= self._ocr
        text = self._conversion.text(path, shown, kind, **options)
        if text.empty:
            note = f"{shown}: {text.empty:,} of {text.pages:,} pages have no text (scanned?)"
            if self._needs_ocr:
                note += "; pip install 'adamas[ocr]' reads scans"
            self._collection.notes.append(note)
        if text.pages and text.empty == text.pages:
            raise UnreadableError(Trouble.SCANNED)
        return Document(shown, size, text, converted_from=kind)

    def picture(self, path: str, *, named: bool) -> Reason | Unread | None:
        """Why a picture is not read, if it is not. named: by the user."""
        if not named and not self._pictures_in_folders:
            return Reason.IMAGE
        if self._ocr:
            return None
        return Unread(f"{suffix_of(path)} {Trouble.NO_OCR}") if self._needs_ocr else Reason.IMAGE

    def fetched(self, page: Page, *, whole: bool) -> Document | None:
        """Add what was fetched from the web; the document, if it is one. whole: pages with their menus."""
        return self.add(page.address, lambda: self._fetched(page, whole))

    def _fetched(self, page: Page, whole: bool) -> Found:
        status = os.stat(page.path)
        if page.is_page and status.st_size:
            options = {"address": page.address, "whole": whole}
            return self.converted(page.path, page.address, status.st_size, Format.ARTICLE, **options)
        found = self._examined(page.path, Candidate(page.path, status, holder=page))
        return replace(found, path=page.address) if isinstance(found, Document) else found

    def _examined(self, path: str, candidate: Candidate) -> Found:
        mode, size = candidate.status.st_mode, candidate.status.st_size
        is_notebook = path.lower().endswith(".ipynb")
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
        by_name = None if self._secrets else secrets.by_name(candidate.below)
        if by_name is not None:
            if candidate.folder is not None:
                return by_name
            self._note_secret(path, by_name)
        limit = None if candidate.folder is None else self._max_size
        if limit is not None and size > limit:
            return Reason.TOO_LARGE
        if is_notebook and size > notebook.MAX_BYTES:
            return Reason.NOTEBOOK_TOO_LARGE
        head = _head(candidate.path)
        file = File(candidate.path, size, candidate.holder)
        kind = recognized(head, path)
        if kind is Format.ARCHIVE:
            return Reason.ARCHIVE
        if kind is Format.IMAGE:
            unread = self.picture(path, named=candidate.folder is None)
            if unread is not None:
                return unread
        if kind is Format.HTML and candidate.folder is not None and not self._secrets:
            secret = secrets.by_content(candidate.below, _blocks(candidate.path, head, size))
            if secret is not None:
                return secret
        if kind is not None:
            try:
                return self.converted(candidate.path, path, size, kind)
            except UnreadableError:
                if kind is not Format.HTML:
                    raise
            return Document(shown_path(path), size, file)  # a page of scripts alone is source code
        packed = compression(head)
        if packed is not None:
            return self.unpacked(path, Gzipped(file, size, packed), limit)
        if is_binary(head):
            return named_binary(head, path)
        if signs.is_lfs_pointer(head, size):
            return Reason.LFS_POINTER
        if candidate.origins is not None:
            reason = candidate.origins.by_head(candidate.below, head)
            if reason is not None:
                return reason
        if not self._secrets and by_name is None:
            named = candidate.folder is None  # of which the beginning is looked at alone
            blocks = [head] if named else _blocks(candidate.path, head, size)
            secret = secrets.by_content(candidate.below, blocks)
            if secret is not None and not named:
                return secret
            if secret is not None:
                self._note_secret(path, secret.reason)
        if candidate.folder is None and latex.takes_in(candidate.path):
            expanded = latex.Expanded.of(candidate.path)
            self._collection.notes += expanded.notes(shown_path(path))
            return Document(shown_path(path), size, expanded)
        document = Document(shown_path(path), size, file, is_notebook)
        return Reason.BLANK if is_blank(document, head) else document

    def _note_secret(self, path: str, reason: Reason) -> None:
        self._collection.notes.append(f"{shown_path(path)} is {reason}; it is read because it was named")

    def unpacked(self, name: str, content: Gzipped, limit: int | None) -> Found:
        """What is in a compressed file, of at most `limit` bytes: unpacked once to the end, because damage
        shows only there. Raises UnreadableError, OSError.
        """
        head = b""
        for block in content.blocks():
            head += block
            if len(head) >= HEAD_BYTES:
                break
        head = head[:HEAD_BYTES]
        kind = recognized(head, os.path.splitext(name)[0])
        if kind is Format.ARCHIVE:
            return Reason.ARCHIVE
        if kind is Format.IMAGE:
            return Reason.IMAGE
        if kind is None and is_binary(head):
            return named_binary(head, os.path.splitext(name)[0])
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
                return self.converted(copy.name, name, size, kind)
        document = Document(shown_path(name), size, content)
        if not size:
            return Reason.EMPTY
        return Reason.BLANK if is_blank(document, head) else document


def named_binary(head: bytes, path: str) -> Reason | Unread:
    """What is no text, by the name of its format where that is known."""
    suffix = signs.unread_kind(head, path)
    return Unread.of(suffix) if suffix else Reason.BINARY


def _head(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits, even if a pipe has taken its place
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)


def _blocks(path: str, head: bytes, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file that begins with `head`. Raises OSError."""
    yield head
    if size > len(head):
        with open(path, "rb", opener=_without_waiting) as file:
            file.seek(len(head))
            left = size - len(head)
            while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
                yield block
                left -= len(block)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
