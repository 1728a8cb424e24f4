"""EPUB books, in spine order, chapter by chapter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.epub.chapters import drawing, pieces
from adamas_cli.documents.formats.epub.contents import Entry, contents
from adamas_cli.documents.formats.epub.package import DRAWINGS, PAGES, Item, Package, UnreadPageError
from adamas_cli.documents.formats.markup import label
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_HEADING = re.compile(r"^#{1,6} +(\S.*)$", re.MULTILINE)
_COUNTED = re.compile(
    r"(chapter|part|book|section|appendix|volume|letter)\b|\d+\b|[ivxlc]+[.: ]", re.IGNORECASE
)


def read(path: str) -> Iterator[Part | Remark]:
    """A section for each chapter, "chapter 3: The Trial", whose text begins with `[chapter 3: The Trial]`.

    Chapters are the files of the spine that hold text, and entries of the table of contents inside them.
    An entry below a chapter in the same file is a section too. Unreadable parts are counted.
    Raises UnreadableError, and what defusedxml raises for entities.
    """
    left_out: Counter[str] = Counter()
    number = 0
    chapter = ""
    with open_archive(path) as archive:
        try:
            package = Package(archive)
        except UnreadPageError as error:
            raise UnreadableError(Trouble.DAMAGED, f"its description: {error}") from error
        if not package.spine:
            raise UnreadableError(Trouble.DAMAGED, "no chapters in the spine")
        if package.locked:
            raise UnreadableError(Trouble.ENCRYPTED)
        entries = contents(package)
        left_out["chapters that are missing from the file"] += package.unlisted
        for item in package.spine:
            try:
                found = _pieces(package, item, entries)
            except UnreadPageError as error:
                left_out[str(error)] += 1
                continue
            for at, (entry, text) in enumerate(found):
                if at and entry is not None and entry.level > _level(found[0][0]):
                    yield Part(f"{text}\n\n", label(f"{chapter} / {entry.title}"))
                    continue
                number += 1
                chapter = _name(number, entry.title if entry else "", _first_heading(text))
                yield Part(f"[{chapter}]\n{text}\n\n", chapter)
    if not number and left_out.total():
        raise UnreadableError(Trouble.DAMAGED, "no chapter can be read")
    yield from (Remark(kind, count) for kind, count in left_out.items() if count)


def _pieces(package: Package, item: Item, entries: dict[str, list[Entry]]) -> list[tuple[Entry | None, str]]:
    """The texts of one spine item. Raises UnreadPageError."""
    here = entries.get(package.found(item.name) or "", [])
    if item.suffix in DRAWINGS:
        text = drawing(package.page(item.name))
        return [(here[0] if here else None, text)] if text else []
    if item.suffix not in PAGES:
        raise UnreadPageError("pages that are neither text nor drawings")
    try:
        return pieces(package.page(item.name), here)
    except RecursionError as error:
        raise UnreadPageError("chapters that are nested too deeply") from error


def _level(entry: Entry | None) -> int:
    return entry.level if entry is not None else 0


def _name(number: int, title: str, heading: str) -> str:
    """The book's own number if it has one, because it may count differently from the spine."""
    for name in (title, heading):
        if _COUNTED.match(name):
            return name
    return f"chapter {number}: {title or heading}" if title or heading else f"chapter {number}"


def _first_heading(text: str) -> str:
    found = _HEADING.search(text)
    return label(found[1]) if found else ""
