"""Files of other formats as documents: from the store of converted texts, or through a reader."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from adamas_cli.documents.converted import ConvertedText, ConvertedTexts, key_of
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Note, Part
from adamas_cli.errors import AdamasError
from adamas_cli.progress import Progress


class Conversion:
    """Converts the files of one collection. `keep`: for later runs too."""

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

    def text(self, path: str, shown: str, kind: Format, encoding: str | None = None) -> ConvertedText:
        """The text of the file at `path`, which is called `shown`; encoding: the codec that the user names.

        Raises UnreadableError and OSError for the file, AdamasError where its text cannot be written.
        """
        before = os.stat(path)
        with open(path, "rb") as file:
            key = key_of(hashlib.file_digest(file, "sha256").hexdigest(), kind, encoding)
        texts = self._opened()
        found = texts.find(key)
        if found is None:
            with self._progress.task(f"converting {shown}", None, "sections") as advance:
                try:
                    found = texts.keep(key, self._read(path, kind, encoding, before, advance))
                except OSError as error:
                    raise AdamasError(
                        f"the text of {shown} cannot be written to {texts.root}: {error.strerror}", path=shown
                    ) from error
        return found

    def _read(
        self,
        path: str,
        kind: Format,
        encoding: str | None,
        before: os.stat_result,
        advance: Callable[[int], None],
    ) -> Iterator[Part | Note]:
        """What the reader says. Raises UnreadableError, also where the file is another than was hashed."""
        words = False
        for part in self._reader.read(kind, path, encoding):
            if isinstance(part, Part):
                words = words or bool(part.text.strip())
                advance(part.section is not None)
            yield part
        try:
            unchanged = _identity(before) == _identity(os.stat(path))
        except OSError:  # of the file, not of the folder that its text is written to
            unchanged = False
        if not unchanged:
            raise UnreadableError(Trouble.CHANGED)
        if not words and kind is not Format.PDF:  # whose empty pages are counted
            raise UnreadableError(Trouble.NO_TEXT)

    def _opened(self) -> ConvertedTexts:
        if self._texts is None:
            self._texts = ConvertedTexts.open(kept=self._keep)
        return self._texts


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
