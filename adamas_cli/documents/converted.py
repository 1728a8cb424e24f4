"""Converted text on disk: made once for each content, found again by its hash.

A file holds a line for each part, the JSON array of its text and its section, and a last line with the counts
and the checksum of the lines before it. Whatever is damaged is converted again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark, summed
from adamas_cli.errors import AdamasError
from adamas_cli.files import appearing, leftovers, make_folder
from adamas_cli.folders import cache_directory

FORMAT = 3  # of these files, and of what the readers make of a document
LIMIT_BYTES = 2**30  # all converted texts together
_SUFFIX = ".jsonl"
_PAGES = ("selectolax", "html-to-markdown")
# What a mail may hold, which changes with them.
_ATTACHED = (
    *("pypdfium2", "pyspellchecker", "mammoth", *_PAGES),
    *("odfpy", "striprtf", "python-pptx", "python-calamine", "pysubs2"),
)
_LIBRARIES: dict[Format, tuple[str, ...]] = {
    Format.PDF: ("pypdfium2", "pyspellchecker", "rapidocr"),
    Format.IMAGE: ("rapidocr", "pillow"),
    Format.EPUB: (*_PAGES, "beautifulsoup4"),
    Format.DOCX: ("mammoth", *_PAGES),
    Format.HTML: _PAGES,
    Format.NOTEBOOK: _PAGES,
    Format.ODT: ("odfpy",),
    Format.RTF: ("striprtf",),
    Format.MAIL: _ATTACHED,
    Format.MBOX: _ATTACHED,
    Format.MSG: ("python-oxmsg", *_ATTACHED),
    Format.PPTX: ("python-pptx",),
    Format.SPREADSHEET: ("python-calamine",),
    Format.ODP: ("odfpy",),
    Format.FB2: (),
    Format.SUBTITLES: ("pysubs2",),
    Format.ARTICLE: ("trafilatura", *_PAGES),
    Format.ARCHIVE: (),  # never kept
}


def converted_directory() -> Path:
    """The folder of converted texts, a part of this tool's cache."""
    return cache_directory() / "converted"


class _PassingFolder:
    """A folder that ends with the last text in it."""

    def __init__(self, below: str | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="adamas-", dir=below))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class ConvertedText:
    """The text of one file, and `remarks` on it. `pages` have been looked into, `empty` of them hold no
    text.
    """

    file: Path
    characters: int
    pages: int
    empty: int
    remarks: tuple[Remark, ...]
    folder: _PassingFolder | None = None

    def parts(self) -> Iterator[Part]:
        """The parts in order. Raises AdamasError where the file is gone since it was found."""
        try:
            with self.file.open("rb") as stream:
                for line in stream:
                    if line.startswith(b"{"):
                        return
                    yield Part(*json.loads(line))
        except OSError as error:
            raise AdamasError(f"{self.file} is gone ({error.strerror}); run the command again.") from error


class ConvertedTexts:
    """The store of converted texts; one that is not kept ends with its texts."""

    def __init__(self, *, kept: bool, below: str | None = None) -> None:
        self._folder = None if kept else _PassingFolder(below)
        self.root = self._folder.path if self._folder else converted_directory()
        self._kept = kept
        self._grown = False

    @classmethod
    def open(cls, *, kept: bool) -> ConvertedTexts:
        """The user's store, or one for this run alone, also where the user's cannot be written."""
        store = cls(kept=kept)
        try:
            make_folder(store.root)
        except OSError:
            return cls(kept=False)
        return store if os.access(store.root, os.W_OK) else cls(kept=False)

    @classmethod
    def passing(cls, below: str | None = None) -> ConvertedTexts:
        """One for this run alone, in a folder `below` another or where temporary files go. Raises OSError."""
        return cls(kept=False, below=below)

    def find(self, key: str) -> ConvertedText | None:
        """What is kept under a key, if it is whole; it then counts as just used."""
        file = self._file(key)
        hasher = xxhash.xxh3_128()
        last = b""
        try:
            with file.open("rb") as stream:
                for line in stream:
                    hasher.update(last)
                    last = line
            counts = json.loads(last)
            if counts["checksum"] != hasher.hexdigest():
                return None
            numbers = (counts["characters"], counts["pages"], counts["empty"])
            remarks = tuple(Remark(*remark) for remark in counts["remarks"])
            found = ConvertedText(file, *numbers, remarks, self._folder)
            os.utime(file)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return found

    def keep(self, key: str, parts: Iterable[Part | Remark]) -> ConvertedText:
        """Write the parts under a key, whole or not at all. Sections are the pages that are counted.

        Raises OSError, and what `parts` raises.
        """
        characters = pages = empty = 0
        remarks: list[Remark] = []
        hasher = xxhash.xxh3_128()
        with appearing(self._file(key)) as stream:
            for part in parts:
                if isinstance(part, Remark):
                    remarks.append(part)
                    continue
                pages += part.section is not None
                empty += part.section is not None and not part.text
                characters += len(part.text)
                if part.text:
                    line = json.dumps(part).encode() + b"\n"
                    hasher.update(line)
                    stream.write(line)
            counts = {
                "characters": characters,
                "pages": pages,
                "empty": empty,
                "remarks": list(map(astuple, summed(remarks))),
                "checksum": hasher.hexdigest(),
            }
            stream.write(json.dumps(counts).encode() + b"\n")
        self._grown = True
        return ConvertedText(self._file(key), characters, pages, empty, tuple(summed(remarks)), self._folder)

    def keep_too(self, text: ConvertedText, key: str) -> None:
        """Find a text under another key as well."""
        target = self._file(key)
        with suppress(OSError):  # it is then converted again
            make_folder(target.parent)
            os.link(text.file, target)

    def close(self) -> None:
        """Keep to the limit, if something was added."""
        if self._kept and self._grown:
            prune(self.root, LIMIT_BYTES)

    def _file(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}{_SUFFIX}"


def key_of(digest: str, kind: Format, options: Mapping[str, Any] | None = None) -> str:
    """What the text of a file is called: by its content, its format, the reader's options and the libraries
    that it uses.
    """
    versions = [_version(library) for library in _LIBRARIES[kind]]
    told = [json.dumps(options, sort_keys=True)] if options else []
    return xxhash.xxh3_128_hexdigest("\0".join([digest, kind, str(FORMAT), *versions, *told]).encode())


def texts_on_disk(root: Path) -> list[tuple[Path, int]]:
    """The converted texts and their bytes, most recently used first."""
    found = []
    for file in root.glob(f"*/[!.]*{_SUFFIX}"):
        with suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime, file, status.st_size))
    return [(file, size) for _, file, size in sorted(found, reverse=True)]


def prune(root: Path, limit: int) -> int:
    """Remove texts, the least recently used first, until the rest takes `limit` bytes.

    Returns the bytes that became free.
    """
    texts = texts_on_disk(root)
    total = sum(size for _, size in texts)
    freed = 0
    for file, size in reversed(texts):
        if total - freed <= limit:
            break
        with suppress(OSError):
            file.unlink()
            freed += size
    for part in leftovers(root):
        with suppress(OSError):
            part.unlink()
    return freed


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
