"""Running heads and page numbers, which repeat from page to page."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from adamas_cli.documents.formats.pdf.runs import CELLS_APART, Run

_OUTER = 0.14  # share of the page's height at the top and bottom where heads are
_LINES = 2  # at each page's top and bottom
_PAGES = 3  # minimum number of pages for a running head
_STEP = 4.0  # points by which its position may differ
_NEAR = 2  # pages: left and right pages have their own heads
_COUNT = r"(?P<number>\d{1,5}|[ivxlc]+)(?:\s*(?:/|of|von|de|sur|di|van)\s*\d+)?"
_NAMED = rf"(?:page|p\.|seite|página|pagina|pág\.|pag\.|стр\.|#)\s*{_COUNT}"
_ALONE = re.compile(rf"[\W_]*(?:{_NAMED}|{_COUNT.replace('number', 'bare')})[\W_]*", re.IGNORECASE)
_BETWEEN = r"[\s|•·,\u2013\u2014-]+"
_BARE = _COUNT.replace("number", "bare")
_APART = rf"(?:{CELLS_APART}|\s*[|•·\u2013\u2014]\s*|\s-\s)"
_BEHIND = re.compile(rf"(?P<words>.*?)(?:{_BETWEEN}{_NAMED}|{_APART}{_BARE})$", re.IGNORECASE)
_BEFORE = re.compile(rf"(?:{_NAMED}{_BETWEEN}|{_BARE}{_APART})(?P<words>.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class PageLines:
    """The lines of a page in order, and the page's lower and upper edge in the same coordinates."""

    lines: list[Run]
    low: float
    high: float


@dataclass(frozen=True)
class _Place:
    page: int
    line: int
    from_edge: float
    top: bool
    number: str

    def runs_on(self, other: _Place) -> bool:
        """Whether `other` is at the same position of a nearby page, with a number that counts pages."""
        apart = other.page - self.page
        counted = self.number.isdigit() and other.number.isdigit()
        return (
            0 < abs(apart) <= _NEAR
            and self.top == other.top
            and abs(self.from_edge - other.from_edge) <= _STEP
            and (not counted or int(other.number) - int(self.number) == apart)
        )


def repeated(pages: Sequence[PageLines]) -> list[set[int]]:
    """For each page, the indices of lines to omit: heads that appeared before, and page numbers.

    Lines are kept if they are all that the page has.
    """
    found: defaultdict[str, list[_Place]] = defaultdict(list)
    for page, content in enumerate(pages):
        for line, from_edge, top in _outer(content):
            words, number = _words(content.lines[line].text)
            found[words].append(_Place(page, line, from_edge, top, number))
    dropped: list[set[int]] = [set() for _ in pages]
    for words, places in found.items():
        running = [
            place
            for at, place in enumerate(places)
            if any(place.runs_on(other) for other in places[max(0, at - 8) : at + 9])
        ]
        if len({place.page for place in running}) >= _PAGES:
            for place in running[1 if words else 0 :]:
                dropped[place.page].add(place.line)
    return [
        lines if len(lines) < len(page.lines) else set() for lines, page in zip(dropped, pages, strict=True)
    ]


def _outer(page: PageLines) -> list[tuple[int, float, bool]]:
    """Lines near the page's edges: index, distance from the edge, and whether it is the upper edge."""
    ranked = sorted(range(len(page.lines)), key=lambda at: page.lines[at].middle)
    margin = _OUTER * (page.high - page.low)
    found = []
    for line in sorted({*ranked[:_LINES], *ranked[-_LINES:]}):
        middle = page.lines[line].middle
        below, above = middle - page.low, page.high - middle
        if min(below, above) <= margin and not page.lines[line].table:
            found.append((line, min(below, above), above < below))
    return found


def _words(text: str) -> tuple[str, str]:
    """A line without its page number, and the number; a number alone leaves no words."""
    if alone := _ALONE.fullmatch(text):
        return "", (alone["number"] or alone["bare"]).lower()
    for pattern in (_BEHIND, _BEFORE):
        if match := pattern.match(text):
            return match["words"].strip(), (match["number"] or match["bare"]).lower()
    return text, ""
