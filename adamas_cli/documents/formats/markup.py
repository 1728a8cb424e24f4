"""HTML as Markdown, and Markdown in sections by its headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter

from adamas_cli.documents.parts import Part

_UNREAD_TAGS = ["script", "style", "noscript", "template", "svg", "head"]
_BLANK_LINES = re.compile(r"[ \t]*\n(?:[ \t]*\n)+")
_HEADING = re.compile(r"^(#{1,3}) +(\S.*)$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)
_LONGEST_LABEL = 100


class _Converter(MarkdownConverter):
    """Links inside a document and pictures cost tokens and lead nowhere: their texts are kept."""

    def convert_a(self, element: Any, text: str, parent_tags: set[str]) -> str:
        if str(element.get("href", "")).startswith(("http://", "https://")):
            return str(super().convert_a(element, text, parent_tags))  # type: ignore[misc]
        return text

    def convert_img(self, element: Any, text: str, parent_tags: set[str]) -> str:
        return str(element.get("alt") or "")


def markdown(html: bytes | str) -> str:
    """The text of a page, without scripts, styles and pictures; RecursionError for very deep nesting."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.find_all(_UNREAD_TAGS):
        element.decompose()
    converter = _Converter(
        heading_style="ATX", bullets="-", escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    return _BLANK_LINES.sub("\n\n", str(converter.convert_soup(soup))).strip()


def headed(text: str) -> Iterator[Part]:
    """A section for each heading of the first three levels, named like it; what comes before has none."""
    starts = [(match.start(), label(match[2])) for match in _HEADING.finditer(text)]
    fences = [match.start() for match in _FENCE.finditer(text)]
    inside = list(zip(fences[::2], fences[1::2], strict=False))
    starts = [(start, name) for start, name in starts if not any(a < start < b for a, b in inside)]
    ends = [*(start for start, _ in starts), len(text)]
    if ends[0]:
        yield Part(text[: ends[0]])
    for (start, name), end in zip(starts, ends[1:], strict=True):
        yield Part(text[start:end], name or None)
    yield Part("\n")


def label(text: str) -> str:
    """One line without Markdown's marks, short enough to be shown beside a path."""
    plain = " ".join(re.sub(r"[`*\[\]#]", "", text).split())
    return plain if len(plain) <= _LONGEST_LABEL else plain[: _LONGEST_LABEL - 1] + "…"
