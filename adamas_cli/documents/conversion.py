"""Documents from files of other formats, taken from the store of converted texts or read by a reader."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self

from adamas_cli.documents.converted import ConvertedText, ConvertedTexts, key_of
from adamas_cli.documents.formats.ocr import SAMPLED
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark
from adamas_cli.errors import AdamasError
from adamas_cli.progress import Progress

_MEMORY = "/dev/shm"  # Linux's in-memory folder


class Conversion:
    """Converts the files of one collection. `keep`: store the texts for later runs."""

    def __init__(self, progress: Progress, *, keep: bool) -> None:
        self._reader = Reader()
        self._progress = progress
        self._keep = keep
        self._texts: ConvertedTexts | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
        if self._texts is not None:
            self._texts.close()

    def text(self, path: str, shown: str, kind: Format, **options: Any) -> ConvertedText:
        """The text of the file at `path`, which is called `shown`. options: the reader's options. For a
        `sample`, a stored text of the whole file is used if there is one.

        Raises UnreadableError and OSError for the file, AdamasError if its text cannot be written.
        """
        before = os.stat(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        key = key_of(digest, kind, options)
        whole_key = key_of(digest, kind, {name: value for name, value in options.items() if name != "sample"})
        found = self._opened().find(whole_key)
        if found is None and key != whole_key:
            found = self._opened().find(key)
        if found is None:
            with self._progress.task(f"converting {shown}", None, "sections") as advance:
                found = self._written(key, lambda: self._read(path, kind, options, before, advance), shown)
            if options.get("sample") and not any(remark.kind == SAMPLED for remark in found.remarks):
                self._opened().keep_too(found, whole_key)  # nothing was sampled, so it is the whole text
        return found

    def _written(self, key: str, read: Callable[[], Generator[Part | Remark]], shown: str) -> ConvertedText:
        """Store the text on disk; if the disk is full, in a folder of this run, in memory if necessary."""
        failure: OSError | None = None
        for choose in (self._opened, ConvertedTexts.passing, lambda: ConvertedTexts.passing(_MEMORY)):
            try:
                self._texts = choose()
                with closing(read()) as parts:
                    return self._texts.keep(key, parts)
            except OSError as error:
                if failure is None and self._texts is not None:
                    where = self._texts.root
                    self._progress.note(f"converted texts are not kept in {where}: {error.strerror}")
                failure = error
        raise AdamasError(f"the text of {shown} cannot be written: {failure}", path=shown) from failure

    def _read(
        self,
        path: str,
        kind: Format,
        options: Mapping[str, Any],
        before: os.stat_result,
        advance: Callable[[int], None],
    ) -> Generator[Part | Remark]:
        """The reader's output. Raises UnreadableError, also if the file changed after it was hashed."""
        words = False
        for part in self._reader.read(kind, path, **options):
            if isinstance(part, Part):
                words = words or bool(part.text.strip())
                advance(part.section is not None)
            yield part
        try:
            unchanged = _identity(before) == _identity(os.stat(path))
        except OSError:  # from the file, not from the folder of the texts
            unchanged = False
        if not unchanged:
            raise UnreadableError(Trouble.CHANGED)
        if not words and kind not in (Format.PDF, Format.IMAGE):  # their empty pages are counted instead
            raise UnreadableError(Trouble.NO_TEXT)

    def _opened(self) -> ConvertedTexts:
        if self._texts is None:
            self._texts = ConvertedTexts.open(kept=self._keep)
        return self._texts


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
