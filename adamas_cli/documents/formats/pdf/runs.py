"""Runs of a PDF page: pieces of text without a gap in them, with their places."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 1.0  # heights of a line: what is farther apart is another cell or column
SPACE = 1.15  # widths of a character: a space between characters of one width is narrower than this
_STOP_GAP = 1.5
STOPS = (".", ",", ";", ":", "!", "?", "…")  # after which printers leave more white than between words
NARROW_GAP = 0.5  # what is farther apart may be another cell, if the lines around have the same gap
_WORD_GAP = 0.18  # below it, what PDFium took for two pieces is one word
CELLS_APART = "   "
_LEADERS = re.compile(r"(?: ?\.){5,} ?")  # from a title to its page number, a token for each dot or two
LEADER = "…"
_LABEL = re.compile(
    r"[•◦▪■●○‣*·\u2013\u2014-]|\(?(?:\d{1,3}|[A-Za-z]|[ivxlc]{1,5})[.)]|[A-Z]?\d*(?:\.\d+)+\.?|[A-Z]\."
)
_LABEL_GAP = 4.0  # heights, from the label of a heading or a list's item to its text


@dataclass(frozen=True, slots=True)
class Run:
    """Text with its place: `left` to `right` as it is read, `low` to `high` from line to line, upwards."""

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
    """Whether what follows after a gap is another cell, and not what a label or leading dots lead to."""
    if gap <= (_STOP_GAP if before.endswith(STOPS) else least) * height or before.endswith(LEADER):
        return False
    return gap > _LABEL_GAP * height or _LABEL.fullmatch(before) is None


def around(runs: Sequence[Run], text: str, *, table: bool = False) -> Run:
    """A run of this text in the place of several."""
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
    """The text of a row that is no table's: what stands apart is kept apart."""
    text = cells[0].text
    leads = any(LEADER in cell.text for cell in cells)
    for before, cell in itertools.pairwise(cells):
        gap, height = cell.left - before.right, min(before.height, cell.height)
        text += (CELLS_APART if is_apart(before.text, gap, height) and not leads else " ") + cell.text
    return text


def joined(runs: list[Run]) -> str:
    """The text of runs that stand side by side without a gap."""
    text = runs[0].text
    for before, run in itertools.pairwise(runs):
        near = run.left - before.right < _WORD_GAP * min(before.height, run.height)
        text += run.text if near else " " + run.text
    return text


def tidy(span: str) -> str:
    """A piece of text with single spaces, and one sign for the dots that lead to a number."""
    return _LEADERS.sub(f" {LEADER} ", " ".join(span.split())).strip()
