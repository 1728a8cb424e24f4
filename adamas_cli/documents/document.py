"""One document: its shown name, and its text, streamed from its source."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Protocol, TypeGuard, cast

from adamas_cli.documents.decoding import CONTROLS, characters, decode
from adamas_cli.documents.numbering import numbered
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark
from adamas_cli.documents.simplifying import simplified
from adamas_cli.documents.surveying import Reading
from adamas_cli.errors import AdamasError

BLOCK_BYTES = 256 * 1024
_CONTROLS = dict.fromkeys(CONTROLS)


class Content(Protocol):
    """Bytes that can be read from the start any number of times."""

    def blocks(self) -> Iterator[bytes]:
        """The bytes in blocks of at most `BLOCK_BYTES`."""
        ...


class Sections(Protocol):
    """Text converted from another format."""

    @property
    def characters(self) -> int:
        """Its length."""
        ...

    def parts(self) -> Iterator[Part]:
        """The text from its beginning, any number of times."""
        ...


def _in_sections(content: Content | Sections) -> TypeGuard[Sections]:
    return hasattr(content, "parts")


@dataclass(frozen=True)
class File:
    """The first `size` bytes of a regular file: a growing log is read as it was when listed.

    `holder`: deletes the file once nothing refers to it.
    """

    path: str
    size: int
    holder: object | None = field(default=None, compare=False)

    def blocks(self) -> Iterator[bytes]:
        """Raises AdamasError if the file vanished, shrank or was replaced by something else since listing."""
        try:
            # Without O_NONBLOCK, a pipe in the file's place would block the open until someone writes.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise self._changed(error.strerror or "cannot be opened") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise self._changed("is no longer a regular file")
            left = self.size
            while left:
                block = os.read(descriptor, min(left, BLOCK_BYTES))
                if not block:
                    raise self._changed(f"lost its last {left:,} bytes")
                left -= len(block)
                yield block
        except OSError as error:
            raise self._changed(error.strerror or "cannot be read") from error
        finally:
            os.close(descriptor)

    def _changed(self, what: str) -> AdamasError:
        path = shown_path(self.path)
        return AdamasError(f"{path} changed since it was listed ({what}); run the command again.", path=path)


@dataclass(frozen=True)
class Spool:
    """A stream that was copied to a temporary file, which is deleted when the process ends."""

    file: IO[bytes]
    size: int

    def blocks(self) -> Iterator[bytes]:
        """Uses positioned reads, so that several readers do not disturb each other."""
        for start in range(0, self.size, BLOCK_BYTES):
            yield os.pread(self.file.fileno(), min(BLOCK_BYTES, self.size - start), start)


@dataclass(frozen=True)
class Document:
    """A document to be read. `path` is safe to print; `size` is in bytes, before decoding.

    `reading` is set for text and for textual formats; without it, text is examined while it is read.
    `converted_from` is the format that its text was made from, empty for text.
    """

    path: str
    size: int
    content: Content | Sections
    reading: Reading | None = None
    numbered: bool = False
    converted_from: str = ""

    def parts(self) -> Iterator[Part]:
        """The text in parts of at most 4 MiB, decoded as `decode` says; never the whole file in memory.

        A section starts with the part that names it, at the start of a line. With `numbered`, each line
        starts with its number. Raises AdamasError if the file has vanished or shrunk since it was listed.
        """
        parts = self._parts()
        return numbered(parts) if self.numbered else parts

    @property
    def format(self) -> str:
        """Its format: `text`, or the one that it was converted from, such as `pdf`."""
        return self.converted_from or "text"

    @property
    def encoding(self) -> str | None:
        """The encoding of its bytes, such as `windows-1252`; None for formats that declare it themselves."""
        return self.reading.encoding.name if self.reading is not None else None

    @property
    def left_out(self) -> dict[str, int]:
        """Content missing from its text: kinds and counts."""
        empty: int = getattr(self.content, "empty", 0)
        others = {remark.kind: remark.count for remark in self.remarks if remark.left_out}
        return ({"pages without text": empty} if empty else {}) | others

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Its reader's remarks; for a text, the parts that were skipped."""
        if self.reading is not None and not _in_sections(self.content):
            return self.reading.remarks
        remarks: tuple[Remark, ...] = getattr(self.content, "remarks", ())
        return remarks

    @property
    def characters(self) -> int:
        """The approximate number of characters, known before reading."""
        return self.content.characters if _in_sections(self.content) else self.size

    def pieces(self) -> Iterator[str]:
        """The text of `parts`."""
        return (part.text for part in self.parts())

    def _parts(self) -> Iterator[Part]:
        if _in_sections(self.content):
            yield from self.content.parts()
            return
        yield from map(Part, self._texts(cast(Content, self.content).blocks()))

    def _texts(self, blocks: Iterator[bytes]) -> Iterator[str]:
        reading = self.reading
        if reading is None:
            yield from decode(blocks)
            return
        texts = (
            simplified(characters(blocks, reading.encoding), keep_lines=self.numbered)
            if reading.clutter
            else decode(blocks, reading.encoding)
        )
        for text in texts:
            if clean := text.translate(_CONTROLS) if reading.controls else text:
                yield clean


def shown_path(path: str) -> str:
    """`path` with escapes such as `\\x1b` for unprintable characters and, except for addresses, without `./`
    and doubled slashes.
    """
    name = path if path.startswith(("http://", "https://")) else os.path.normpath(path)
    if name.isprintable():
        return name
    # Bytes that are not UTF-8 arrive from the file system as surrogates; they are shown like `\xff`.
    return "".join(_escaped(character) for character in name)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
