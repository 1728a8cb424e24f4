"""Runs of a PDF page: pieces of text without gaps, with their positions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 1.0  # line heights: anything farther apart is another cell or column
SPACE = 1.15  # character widths: a space between characters of one width is narrower than this
_STOP_GAP = 1.5
STOPS = (".", ",", ";", ":", "!", "?", "…")  # printers leave more white space after them than between words
NARROW_GAP = 0.5  # anything farther apart may be another cell, if the lines around have the same gap
_WORD_GAP = 0.18  # below it, two of PDFium's pieces are one word
CELLS_APART = "   "
_LEADERS = re.compile(r"(?: ?\.){5,} ?")  # from a title to its page number; they cost a token per dot or two
LEADER = "…"
_LABEL = re.compile(
    r"[•◦▪■●○‣*·\u2013\u2014-]|\(?(?:\d{1,3}|[A-Za-z]|[ivxlc]{1,5})[.)]|[A-Z]?\d*(?:\.\d+)+\.?|[A-Z]\."
)
_LABEL_GAP = 4.0  # line heights, from the label of a heading or list item to its text


@dataclass(frozen=True, slots=True)
class Run:
    """Text with its position: `left` to `right` along the line, `low` to `high` across lines, upwards."""

    text: str
    left: float
    low: float
    right: float
    high: float
    order: int
    """Its place in the file, where what is drawn together stands together."""
    table: bool = False

    @property
    def height(self) -> float:
        return self.high - self.low

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


def is_apart(before: str, gap: float, height: float, least: float = GAP) -> bool:
    """Whether the text after a gap is another cell, rather than what a label or dot leaders lead to."""
    if gap <= (_STOP_GAP if before.endswith(STOPS) else least) * height or before.endswith(LEADER):
        return False
    return gap > _LABEL_GAP * height or _LABEL.fullmatch(before) is None


def around(runs: Sequence[Run], text: str, *, table: bool = False) -> Run:
    """A run with this text that covers several runs."""
    return Run(
        text,
        min(run.left for run in runs),
        min(run.low for run in runs),
        max(run.right for run in runs),
        max(run.high for run in runs),
        min(run.order for run in runs),
        table,
    )


def in_line(cells: Sequence[Run]) -> str:
    """The text of a row outside tables; separate cells stay separate."""
    text = cells[0].text
    leads = any(LEADER in cell.text for cell in cells)
    for before, cell in itertools.pairwise(cells):
        gap, height = cell.left - before.right, min(before.height, cell.height)
        text += (CELLS_APART if is_apart(before.text, gap, height) and not leads else " ") + cell.text
    return text


def joined(runs: list[Run]) -> str:
    """The text of adjacent runs without gaps."""
    text = runs[0].text
    for before, run in itertools.pairwise(runs):
        near = run.left - before.right < _WORD_GAP * min(before.height, run.height)
        text += run.text if near else " " + run.text
    return text


def tidy(span: str) -> str:
    """A piece of text with single spaces, and dot leaders replaced by one sign."""
    return _LEADERS.sub(f" {LEADER} ", " ".join(span.split())).strip()
