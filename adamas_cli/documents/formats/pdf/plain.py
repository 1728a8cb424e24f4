"""The lines of PDF pages that need no layout, like most pages of books; a few positions show which."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from adamas_cli.documents.formats.pdf.characters import HYPHEN_MARK, Characters
from adamas_cli.documents.formats.pdf.runs import (
    CELLS_APART,
    GAP,
    LEADER,
    NARROW_GAP,
    SPACE,
    Run,
    is_apart,
    tidy,
)

_RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_SHARE = 0.2
_ROWS = 3  # of a table with narrow gaps
_CELLS_NEAR = 4  # lines: with fewer between them, two lines with cells may form a table


def drawn_lines(characters: Characters) -> list[Run]:
    """The lines in PDFium's order, whatever their positions."""
    lines: list[Run] = []
    for start, end in _spans(characters.text):
        left, high, right, low = characters.box(start)
        lines.append(Run(tidy(characters.text[start:end]), left, low, right, high, len(lines)))
    return lines


def is_right_to_left(text: str) -> bool:
    """Whether much of the text is Hebrew or Arabic, which PDFium orders correctly and positions do not."""
    return len(_RIGHT_TO_LEFT.findall(text)) > _SHARE * len(text)


def plain_lines(characters: Characters) -> list[Run] | None:
    """The lines of a page if they follow each other down the page, each from left to right; else None.

    A line may have separate cells, such as a running head. Lines with cells near each other may be a table or
    columns, so the page is not plain.
    """
    text = characters.text
    lines: list[Run] = []
    with_cells: list[int] = []
    gaps: list[tuple[float, float, int]] = []
    for start, end in _spans(text):
        left, high, right, low = characters.box(start)
        last_left, last_high, last_right, last_low = characters.box(end - 1)
        height = high - low
        if height <= 0 or not low < (last_high + last_low) / 2 < high or last_right < right:
            return None
        if end - start > 2 and math.isclose(last_left, left, abs_tol=0.1):
            return None  # written from top to bottom
        line = _line(characters, start, end, height)
        if line is None:
            return None
        several = line.cells > 1
        gaps = _through(gaps, line.gaps, 0.3 * height)
        if any(count >= _ROWS for _, _, count in gaps):
            return None
        run = Run(line.text, left, low, last_right, high, len(lines))
        if lines and run.middle > lines[-1].middle - 0.3 * height:
            before = lines[-1]
            if abs(run.middle - before.middle) > 0.2 * height or left - before.right < GAP * height:
                return None
            text_of_both = f"{before.text}{CELLS_APART}{run.text}"
            lines[-1] = Run(text_of_both, before.left, before.low, last_right, before.high, before.order)
            several = True
        else:
            lines.append(run)
        if several:
            if with_cells and 0 < len(lines) - with_cells[-1] < _CELLS_NEAR:
                return None
            with_cells.append(len(lines))
    return lines


class _Line(NamedTuple):
    """A line: its text, the number of its cells, and the positions of gaps that may separate columns."""

    text: str
    cells: int
    gaps: list[tuple[float, float]]


def _line(characters: Characters, start: int, end: int, height: float) -> _Line | None:
    """A line with its wide gaps kept; None if a gap goes back."""
    text = characters.text
    cells: list[str] = []
    gaps: list[tuple[float, float]] = []
    begun = start
    for gap in characters.gaps(start, end, NARROW_GAP * height, height):
        wide = gap.right - gap.left
        if wide < 0:
            return None
        if wide > SPACE * gap.width:
            before = tidy(text[begun : gap.at])
            if is_apart(before, wide, height, NARROW_GAP):
                gaps.append((gap.left, gap.right))
            if is_apart(before, wide, height):
                cells.append(before)
                begun = gap.behind
    cells.append(tidy(text[begun:end]))
    between = " " if any(LEADER in cell for cell in cells) else CELLS_APART
    return _Line(between.join(cells), len(cells), gaps)


def _through(
    before: list[tuple[float, float, int]], gaps: list[tuple[float, float]], least: float
) -> list[tuple[float, float, int]]:
    """The gaps of a line, narrowed to those that continue from earlier lines, with the count of lines."""
    found = []
    for left, right in gaps:
        best = (left, right, 1)
        for other_left, other_right, count in before:
            both = (max(left, other_left), min(right, other_right))
            if both[1] - both[0] >= least and count >= best[2]:
                best = (*both, count + 1)
        found.append(best)
    return found


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each line without surrounding spaces; a hyphen mark also ends a line."""
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
