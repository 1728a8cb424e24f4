"""The pages of an EPUB as Markdown, split at the entries of its table of contents."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from bs4 import BeautifulSoup, Tag

from adamas_cli.documents.formats.epub.contents import Entry
from adamas_cli.documents.formats.markup import markdown

_MARK = re.compile("\ue000(\\d+)\ue001")  # private use; removed from the page first
_PRIVATE = re.compile("[\ue000\ue001]")
_NAMED = re.compile(r"<([A-Za-z][\w:.-]*)\b[^<>]*?\s(?:id|name)\s*=\s*([\"'])([^<>\"']*)\2[^<>]*>")
_DRAWING = re.compile(r"<svg\b.*?</svg\s*>", re.IGNORECASE | re.DOTALL)
_OUTSIDE = ("ul", "ol", "dl", "table", "img", "br", "hr", "svg", "input")  # cannot contain text directly
_ROWS = ("tbody", "thead", "tr")


def pieces(page: str, entries: Sequence[Entry]) -> list[tuple[Entry | None, str]]:
    """The texts of a page with the entries that begin them; None for text before the first entry.

    The first entry whose anchor is missing from the page begins at the start of the page.
    """
    page = _DRAWING.sub(_as_text, _PRIVATE.sub("", page))
    numbers = {entry.anchor: number for number, entry in enumerate(entries) if entry.anchor}
    marked: list[str] = []
    taken: set[int] = set()
    at = 0
    for tag in _NAMED.finditer(page) if numbers else ():
        number = numbers.get(html.unescape(tag[3]))
        if number is None or number in taken or tag[1].lower() in ("body", "html"):
            continue
        name = tag[1].lower()
        place = tag.end()
        if name in _OUTSIDE or name in _ROWS:
            place = tag.start() if name in _OUTSIDE else page.rfind("<table", at, tag.start())
        if place >= at:
            taken.add(number)
            marked += [page[at:place], f"\ue000{number}\ue001"]
            at = place
    text = markdown("".join([*marked, page[at:]]))
    start = next((entry for number, entry in enumerate(entries) if number not in taken), None)
    found: list[tuple[Entry | None, str]] = []
    begun, current = 0, start
    for mark in _MARK.finditer(text):
        line = max(text.rfind("\n", 0, mark.start()) + 1, begun)
        found.append((current, _MARK.sub("", text[begun:line]).strip()))
        begun, current = line, entries[int(mark[1])]
    found.append((current, _MARK.sub("", text[begun:]).strip()))
    return [piece for piece in found if piece[1]]


def drawing(page: str) -> str:
    """The words in an SVG drawing: its title, description and labels, one per line."""
    soup = BeautifulSoup(page, "html.parser")
    return "\n".join(_words(soup))


def _as_text(drawn: re.Match[str]) -> str:
    """The words of a drawing inside a page, as a paragraph."""
    return f"<p>{html.escape(drawing(drawn[0]))}</p>"


def _words(node: Tag) -> list[str]:
    found = (part.get_text(" ", strip=True) for part in node.find_all(["title", "desc", "text"]))
    return [" ".join(words.split()) for words in found if words]
