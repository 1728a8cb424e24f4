"""FictionBook 2: a book in one XML file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from adamas_cli.documents.formats.markdown_table import table
from adamas_cli.documents.formats.markup import label
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAX_BYTES = 128 * 2**20  # parsed as a whole; pictures are embedded as Base64
_LINES = {"p", "v", "subtitle", "text-author", "date"}
_STYLES = {"strong": "**", "emphasis": "*", "strikethrough": "~~", "code": "`"}


def read(path: str) -> Iterator[Part | Remark]:
    """A section for each titled section of the book, "chapter 3: The Trial"; footnotes come last.

    Raises UnreadableError, and what the XML parser raises for damaged files.
    """
    from defusedxml.ElementTree import fromstring

    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    book = fromstring(file.read_bytes())
    yield Part(_title_page(book))
    number = 0
    for body in (node for node in book if _name(node) == "body"):
        named = body.get("name") or ""
        for title, text in _sections(body, 1):
            if not text.strip():
                continue
            section = None
            if title and not named:
                number += 1
                section = f"chapter {number}: {title}"
            elif title or named:
                section = f"{named}: {title}" if named and title else title or named
            yield Part(f"[{section}]\n{text}\n" if section else f"{text}\n", section)
    if pictures := sum(_name(node) == "binary" for node in book):
        yield Remark("pictures", pictures)


def _title_page(book: Element) -> str:
    """Title, authors, series, year and summary, as far as the description has them."""
    info = next((node for node in book.iter() if _name(node) == "title-info"), None)
    if info is None:
        return ""
    lines: list[str] = []
    authors = [
        " ".join(_flat(part) for part in node if _name(part).endswith("name"))
        for node in info
        if _name(node) == "author"
    ]
    for node in info:
        name = _name(node)
        if name == "book-title":
            lines.insert(0, f"# {_flat(node)}")
        elif name == "sequence":
            lines.append(f"{node.get('name', '')} {node.get('number', '')}".strip())
        elif name in ("date", "annotation"):
            lines.append(_flat(node))
    if authors:
        lines.insert(1, ", ".join(authors))
    return "\n\n".join(filter(None, lines)) + "\n\n"


def _sections(element: Element, level: int) -> Iterator[tuple[str, str]]:
    """Titles with the texts up to the next title."""
    title, blocks = "", []
    for node in element:
        name = _name(node)
        if name == "title":
            title = label(" ".join(_flat(line) for line in node))
            blocks.append(f"{'#' * min(level, 6)} {title}")
        elif name == "section":
            if blocks:
                yield title, "\n\n".join(filter(None, blocks))
                title, blocks = "", []
            yield from _sections(node, level + 1)
        else:
            blocks += _blocks(node)
    if blocks:
        yield title, "\n\n".join(filter(None, blocks))


def _blocks(node: Element) -> Iterator[str]:
    name = _name(node)
    if name in _LINES:
        text = _marked(node)
        yield f"### {text}" if name == "subtitle" and text else text
    elif name == "table":
        rows = (row for row in node.iter() if _name(row) == "tr")
        yield "".join(table([_flat(cell) for cell in row] for row in rows)).strip()
    elif name == "stanza":
        yield "\n".join(_marked(line) for line in node)
    elif name in ("cite", "epigraph", "poem", "annotation", "title"):
        inner = "\n\n".join(text for child in node for text in _blocks(child))
        yield re.sub(r"^", "> ", inner, flags=re.MULTILINE) if name in ("cite", "epigraph") else inner


def _marked(node: Element) -> str:
    """The text of a paragraph with its emphasis; a note is marked by its number, as in print."""
    parts = [node.text or ""]
    for child in node:
        inner = _marked(child)
        name = _name(child)
        mark = _STYLES.get(name, "")
        if name == "sup":
            inner = f"^{inner}" if inner else ""
        elif name == "sub":
            inner = f"_{inner}" if inner else ""
        elif name == "a" and child.get("type") == "note":
            inner = inner if inner.startswith("[") else f"[{inner}]"
        parts += [f"{mark}{inner}{mark}" if inner.strip() else inner, child.tail or ""]
    return " ".join("".join(parts).split())


def _flat(node: Element) -> str:
    return " ".join("".join(node.itertext()).split())


def _name(node: Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""
