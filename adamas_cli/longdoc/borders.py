"""Places to cut a text: documents as a stream of lines, each with the kind of border before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from adamas_cli.documents.parts import Part

_MARKDOWN = (".md", ".markdown", ".mdx")
_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
# Alone on a line, as in novels and reports: `CHAPTER XII`, `Part 2. The Return`, `VOLUME I`.
_CHAPTER = re.compile(
    r"\s*((?:chapter|part|book|volume|section|letter|act|appendix)\s+(?:[ivxlcdm]+|\d+)\b.{0,60}?)[\s_*]*",
    re.IGNORECASE,
)
_PAGE = "page "  # names of sections that are only physical pages
_LONGEST_SECTION = 60  # characters of a heading kept to name the place


class Border(IntEnum):
    """Kinds of border, from the worst place for a cut to the best."""

    CHARACTER = 0
    WORD = 1
    LINE = 2
    PARAGRAPH = 3
    SECTION = 4
    CHAPTER = 5
    FILE = 6
    FOLDER = 7


class Source(Protocol):
    """Something to cut: a document, or a stand-in for one."""

    @property
    def path(self) -> str: ...

    def parts(self) -> Iterator[Part]:
        """The text in pieces of any length, with the starts of its sections."""
        ...


@dataclass(frozen=True, slots=True)
class Unit:
    """A line, or a piece of a long one; never cut further."""

    document: int  # its index in the documents
    path: str
    text: str
    line: int  # 1 for the document's first
    section: str | None  # the heading above it
    border: Border  # border between it and the unit before


def units(
    documents: Iterable[Source], longest: int, folder: Callable[[str], str] = lambda _: ""
) -> Iterator[Unit]:
    """All units of the documents in order; the units of a document joined are its text.

    longest: characters of a unit. folder: returns the group of a path; a change of group is a FOLDER border.
    """
    group: str | None = None
    for index, document in enumerate(documents):
        before, group = group, folder(document.path)
        border = Border.FOLDER if group != before else Border.FILE
        for unit in _document_units(index, document, longest):
            yield Unit(index, document.path, unit.text, unit.line, unit.section, border or unit.border)
            border = Border.CHARACTER


def _document_units(index: int, document: Source, longest: int) -> Iterator[Unit]:
    line, section, previous = 1, None, "\n"
    after_blank, sectioned = False, False
    markdown = document.path.lower().endswith(_MARKDOWN)
    for text, begins in _fragments(document.parts(), longest):
        blank = not text.strip()
        at_start = previous.endswith("\n")
        if begins is not None:
            border = Border.SECTION if begins.startswith(_PAGE) else Border.CHAPTER
            section, sectioned = begins, True
        elif not at_start:
            border = Border.WORD if previous[-1].isspace() else Border.CHARACTER
        else:
            border = Border.PARAGRAPH if after_blank and not blank else Border.LINE
            heading = _heading(text, markdown)
            if heading is not None:
                border = heading[0]
                section = section if sectioned else heading[1]
        yield Unit(index, document.path, text, line, section, border)
        after_blank = blank and (at_start or after_blank)
        line += text.endswith("\n")
        previous = text


def _heading(line: str, markdown: bool) -> tuple[Border, str] | None:
    """The border and text of a heading; None for other lines."""
    if markdown and (match := _HEADING.match(line)):
        border = Border.CHAPTER if len(match[1]) == 1 else Border.SECTION
        return border, match[2].strip(" #\n")[:_LONGEST_SECTION]
    if match := _CHAPTER.fullmatch(line):
        return Border.CHAPTER, match[1].strip()[:_LONGEST_SECTION]
    return None


def _fragments(parts: Iterable[Part], longest: int) -> Iterator[tuple[str, str | None]]:
    """Lines with their line feeds, each with the section that begins with it. Lines longer than `longest`
    characters are split, at a space if possible.
    """
    rest, begins = "", None
    for part in parts:
        if part.section is not None:
            if rest:
                yield rest, begins
            rest, begins = "", part.section
        *whole, rest = (rest + part.text).split("\n")
        broken = [piece for line in whole for piece in _broken(line + "\n", longest)]
        if len(rest) > longest:
            *pieces, rest = _broken(rest, longest)
            broken += pieces
        for piece in broken:
            yield piece, begins
            begins = None
    for piece in _broken(rest, longest) if rest else ():
        yield piece, begins
        begins = None


def _broken(line: str, longest: int) -> Iterator[str]:
    start = 0
    while len(line) - start > longest:
        space = max(line.rfind(blank, start + longest // 2, start + longest) for blank in " \t")
        end = space + 1 if space >= 0 else start + longest
        yield line[start:end]
        start = end
    yield line[start:]
