"""Runs of a PDF page: characters that follow each other without a gap, in the direction they are written."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from adamas_cli.documents.formats.pdf_characters import HYPHEN_MARK, Characters
from adamas_cli.documents.formats.pdf_rules import Rule, Rules, turned_box

GAP = 1.0  # heights of a line: what is farther apart is another cell or column
_WORD_GAP = 0.18  # below it, what PDFium took for two pieces is one word
_CELLS_NEAR = 4  # lines: fewer between two lines with cells may make a table of them
CELLS_APART = "   "
_OVERLAP = 0.5  # of the lower height: what shares less stands on different lines
_QUARTER = math.pi / 2
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


def plain_lines(characters: Characters) -> list[Run] | None:
    """The lines of a page where they follow each other down the page, each from left to right; else None.

    A line may have cells that stand apart, such as a running head; lines with cells near each other may be a
    table or columns, and the page is not plain.
    """
    text = characters.text
    lines: list[Run] = []
    with_cells: list[int] = []
    for start, end in _spans(text):
        left, high, right, low = characters.box(start)
        last_left, last_high, last_right, last_low = characters.box(end - 1)
        height = high - low
        if height <= 0 or not low < (last_high + last_low) / 2 < high or last_right < right:
            return None
        if end - start > 2 and math.isclose(last_left, left, abs_tol=0.1):
            return None  # from top to bottom
        cells = _cells(characters, start, end, height)
        if cells is None:
            return None
        run = Run(CELLS_APART.join(cells), left, low, last_right, high, len(lines))
        if lines and run.middle > lines[-1].middle - 0.3 * height:
            before = lines[-1]
            if abs(run.middle - before.middle) > 0.2 * height or left - before.right < GAP * height:
                return None
            text_of_both = f"{before.text}{CELLS_APART}{run.text}"
            lines[-1] = Run(text_of_both, before.left, before.low, last_right, before.high, before.order)
            cells.append("")
        else:
            lines.append(run)
        if len(cells) > 1:
            if with_cells and 0 < len(lines) - with_cells[-1] < _CELLS_NEAR:
                return None
            with_cells.append(len(lines))
    return lines


def _cells(characters: Characters, start: int, end: int, height: float) -> list[str] | None:
    """The texts of a line between its wide gaps; None where one goes back."""
    text = characters.text
    cells: list[str] = []
    begun = start
    at = text.find(" ", start, end)
    while at >= 0:
        behind = at + 1
        while text[behind] == " ":
            behind += 1
        gap = characters.box(behind)[0] - characters.box(at - 1)[2]
        if gap < -height:
            return None
        if gap > GAP * height and is_apart(before := _text(text[begun:at]), gap, height):
            cells.append(before)
            begun = behind
        at = text.find(" ", behind, end)
    cells.append(_text(text[begun:end]))
    return cells


def runs_by_turn(characters: Characters, rules: Rules) -> dict[int, list[Run]]:
    """The runs for each direction, in quarter turns counterclockwise, turned so that all read to the right.

    No run crosses an upright rule.
    """
    boxes = characters.boxes()
    text = characters.text
    visible = np.array([index for index, character in enumerate(text) if not character.isspace()], np.int64)
    turns = _turns(characters, visible, boxes[visible])
    runs: dict[int, list[Run]] = {}
    for turn in np.unique(turns).tolist():
        indices = visible[turns == turn]
        runs[turn] = list(_runs(text, indices, _turned(boxes[indices], turn), rules.turned(turn)[1]))
    return runs


def is_apart(before: str, gap: float, height: float) -> bool:
    """Whether what follows after a gap is another cell, and not what a label or leading dots lead to."""
    if gap <= GAP * height or before.endswith(LEADER):
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


def joined(runs: list[Run]) -> str:
    """The text of runs that stand side by side without a gap."""
    text = runs[0].text
    for before, run in itertools.pairwise(runs):
        near = run.left - before.right < _WORD_GAP * min(before.height, run.height)
        text += run.text if near else " " + run.text
    return text


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each line, without spaces around it; a line ends with a mark of a hyphen, too."""
    start = 0
    while start < len(text):
        ends = [end for end in (text.find("\n", start), text.find(HYPHEN_MARK, start)) if end >= 0]
        end = min(ends) + 1 if ends else len(text)
        line = text[start:end]
        inside = line.strip(" \t\r\n")
        if inside:
            first = start + line.index(inside)
            yield first, first + len(inside)
        start = end


def _turns(characters: Characters, visible: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """int64 [visible]: the direction of each visible character, asked only where one does not follow the
    character before it to the right.
    """
    left, high, right, low = boxes.T
    middle = (high + low) / 2
    follows = np.zeros(len(visible), bool)
    reach = right[:-1] - 0.3 * (high - low)[1:]
    follows[1:] = (reach <= left[1:]) & (low[1:] < middle[:-1]) & (middle[:-1] < high[1:])
    asked = np.flatnonzero(~follows)
    found = [round(-characters.angle(int(index)) / _QUARTER) % 4 for index in visible[asked]]
    lengths = np.diff(np.append(asked, len(visible)))
    return np.repeat(np.array(found, np.int64), lengths)


def _turned(boxes: np.ndarray, turn: int) -> np.ndarray:
    """float64 [characters, 4]: left, low, right, high in the direction of the text."""
    left, high, right, low = boxes.astype(np.float64).T
    return np.stack(turned_box((left, low, right, high), turn), axis=1)


def _runs(text: str, indices: np.ndarray, boxes: np.ndarray, upright: list[Rule]) -> Iterator[Run]:
    left, low, right, high = boxes.T
    height = np.maximum(high - low, 1e-3)
    smaller = np.minimum(height[1:], height[:-1])
    shared = np.minimum(high[1:], high[:-1]) - np.maximum(low[1:], low[:-1])
    gap = left[1:] - right[:-1]
    broken = (shared < _OVERLAP * smaller) | (gap > GAP * smaller) | (gap < -GAP * smaller)
    between = ((a, b) for a, b in zip(indices.tolist(), indices[1:].tolist(), strict=False))
    broken |= np.array(
        [text[a] == HYPHEN_MARK or (b - a > 1 and "\n" in text[a:b]) for a, b in between], dtype=bool
    )
    middle = (low + high) / 2
    for rule in upright:
        passed = (right[:-1] < rule.at + 1) & (left[1:] > rule.at - 1) & (gap > 0)
        broken |= passed & (middle[:-1] > rule.start) & (middle[:-1] < rule.end)
    starts = [0, *(np.flatnonzero(broken) + 1).tolist(), len(indices)]
    for start, end in itertools.pairwise(starts):
        if start == end:
            continue
        span = text[indices[start] : indices[end - 1] + 1]
        largest = start + int(np.argmax(height[start:end]))
        yield Run(
            _text(span),
            float(left[start:end].min()),
            float(low[largest]),
            float(right[start:end].max()),
            float(high[largest]),
            int(indices[start]),
        )


def _text(span: str) -> str:
    return _LEADERS.sub(f" {LEADER} ", " ".join(span.split())).strip()
