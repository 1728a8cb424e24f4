"""HTML as Markdown, and Markdown in sections by its headings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from adamas_cli.documents.formats.pages import Page
from adamas_cli.documents.parts import Part

_BLANK_LINES = re.compile(r"[ \t]*\n(?:[ \t]*\n)+")
_LINE_ENDS = re.compile(r"[ \t]+$", re.MULTILINE)
_HEADING = re.compile(r"^(#{1,3}) +(\S.*)$", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)", re.MULTILINE)
_LONGEST_LABEL = 100


def markdown(html: bytes | str) -> str:
    """The text of a page, without scripts, styles, pictures and hidden content.

    Raises RecursionError for very deep nesting.
    """
    return written(Page(html))


def written(page: Page) -> str:
    """The body of a page as Markdown. Raises RecursionError for very deep nesting."""
    from html_to_markdown import ConversionOptions, HiddenContent, PreprocessingOptions, convert

    options = ConversionOptions(
        bullets="-",
        compact_tables=True,
        extract_metadata=False,
        hidden_content=HiddenContent.ALL,
        preprocessing=PreprocessingOptions(enabled=False),
    )
    found = convert(page.body, options)
    for warning in found.warnings:
        if "depth" in str(warning.kind):
            raise RecursionError(warning.message)
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("", found.content or "")).strip()


def headed(text: str) -> Iterator[Part]:
    """A section named after each heading of the first three levels; text before the first has none."""
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
    """One line without Markdown's marks, short enough to show beside a path."""
    plain = " ".join(re.sub(r"[`*\[\]#]", "", text).split())
    return plain if len(plain) <= _LONGEST_LABEL else plain[: _LONGEST_LABEL - 1] + "…"
