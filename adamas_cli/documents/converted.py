"""Converted text on disk: made once for each content and found by its hash.

A file holds one line for each part, a JSON array of its text and its section, and a last line with the counts
and the checksum of the preceding lines. Damaged files are converted again.
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

FORMAT = 3  # version of these files and of what the readers extract from a document
LIMIT_BYTES = 2**30  # all converted texts together
_SUFFIX = ".jsonl"
_PAGES = ("selectolax", "html-to-markdown")
# Libraries for mail attachments: a mail's text changes with their versions.
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
    """The folder of converted texts, part of adamas's cache."""
    return cache_directory() / "converted"


class _PassingFolder:
    """A temporary folder, deleted with the last text in it."""

    def __init__(self, below: str | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="adamas-", dir=below))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class ConvertedText:
    """The text of one file, and `remarks` on it. `pages` were read, `empty` of them have no text."""

    file: Path
    characters: int
    pages: int
    empty: int
    remarks: tuple[Remark, ...]
    folder: _PassingFolder | None = None

    def parts(self) -> Iterator[Part]:
        """The parts in order. Raises AdamasError if the file has disappeared since it was found."""
        try:
            with self.file.open("rb") as stream:
                for line in stream:
                    if line.startswith(b"{"):
                        return
                    yield Part(*json.loads(line))
        except OSError as error:
            raise AdamasError(f"{self.file} is gone ({error.strerror}); run the command again.") from error


class ConvertedTexts:
    """The store of converted texts. If it is not `kept`, it is deleted with its texts."""

    def __init__(self, *, kept: bool, below: str | None = None) -> None:
        self._folder = None if kept else _PassingFolder(below)
        self.root = self._folder.path if self._folder else converted_directory()
        self._kept = kept
        self._grown = False

    @classmethod
    def open(cls, *, kept: bool) -> ConvertedTexts:
        """The user's store, or one for this run only, also if the user's is not writable."""
        store = cls(kept=kept)
        try:
            make_folder(store.root)
        except OSError:
            return cls(kept=False)
        return store if os.access(store.root, os.W_OK) else cls(kept=False)

    @classmethod
    def passing(cls, below: str | None = None) -> ConvertedTexts:
        """A store for this run only, in the folder `below` or the system's temporary one. Raises OSError."""
        return cls(kept=False, below=below)

    def find(self, key: str) -> ConvertedText | None:
        """The text stored under a key, if it is intact; this marks it as just used."""
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
        """Write the parts under a key, whole or not at all. Parts with a section are counted as pages.

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
        """Store a text under another key as well."""
        target = self._file(key)
        with suppress(OSError):  # it will be converted again
            make_folder(target.parent)
            os.link(text.file, target)

    def close(self) -> None:
        """Enforce the size limit if texts were added."""
        if self._kept and self._grown:
            prune(self.root, LIMIT_BYTES)

    def _file(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}{_SUFFIX}"


def key_of(digest: str, kind: Format, options: Mapping[str, Any] | None = None) -> str:
    """The key of a file's text: from its content, its format, the reader's options and the versions of the
    libraries it uses.
    """
    versions = [_version(library) for library in _LIBRARIES[kind]]
    told = [json.dumps(options, sort_keys=True)] if options else []
    return xxhash.xxh3_128_hexdigest("\0".join([digest, kind, str(FORMAT), *versions, *told]).encode())


def texts_on_disk(root: Path) -> list[tuple[Path, int]]:
    """The converted texts and their sizes in bytes, most recently used first."""
    found = []
    for file in root.glob(f"*/[!.]*{_SUFFIX}"):
        with suppress(OSError):
            status = file.stat()
            found.append((status.st_mtime, file, status.st_size))
    return [(file, size) for _, file, size in sorted(found, reverse=True)]


def prune(root: Path, limit: int) -> int:
    """Remove the least recently used texts until at most `limit` bytes remain.

    Returns the bytes freed.
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
