"""From boxes with words to text in reading order: columns one after the other, rows kept.

The page is cut at its widest gaps, as in the recursive XY cut (Nagy and Seth, 1984).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from statistics import median

_COLUMN_GAP = 1.2  # minimum gap between columns, in line heights
_FILLED = 0.6  # share of a column's width that half of its lines fill: cells of tables are shorter
_LEAST_LINES = 3  # minimum number of lines of a column
_LEAST_WIDTH = 8.0  # minimum width in line heights: anything narrower is a column of a table
_ACROSS = 0.7  # a line longer than this share of the whole width belongs to no column
_PARAGRAPH_GAP = 0.9  # in line heights: more than the space between lines
_CELL_GAP = 2.0  # in line heights, within a line


@dataclass(frozen=True)
class Box:
    """A piece of a line: its corners, its text and the `score` of its recognition."""

    left: float
    top: float
    right: float
    bottom: float
    text: str = ""
    score: float = 1.0

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top


def text_of(boxes: list[Box]) -> str:
    """The text, with an empty line between paragraphs and columns."""
    if not boxes:
        return ""
    unit = median(box.height for box in boxes)
    return "\n\n".join(_paragraphs(block, unit) for block in _blocks(boxes, unit))


def _blocks(boxes: list[Box], unit: float) -> list[list[Box]]:
    """The boxes of columns, and of the text above, between and below them, in reading order."""
    columns = _columns(boxes, unit)
    if columns:
        return [block for column in columns for block in _blocks(column, unit)]
    width = max(box.right for box in boxes) - min(box.left for box in boxes)
    blocks: list[list[Box]] = []
    grows = False  # whether the next text extends the last block
    for _, bands in groupby(_bands(boxes), lambda band: _longest(band, unit) > _ACROSS * width):
        run = [box for band in bands for box in band]
        columns = _columns(run, unit)
        if columns:
            blocks += [block for column in columns for block in _blocks(column, unit)]
        elif grows:
            blocks[-1] += run
        else:
            blocks.append(run)
        grows = not columns
    return blocks


def _longest(band: list[Box], unit: float) -> float:
    """The width of the longest part of a line between gaps as wide as column gaps."""
    longest, start, reached = 0.0, band[0].left, band[0].right
    for box in band[1:]:
        if box.left - reached > _COLUMN_GAP * unit:
            longest, start = max(longest, reached - start), box.left
        reached = max(reached, box.right)
    return max(longest, reached - start)


def _columns(boxes: list[Box], unit: float) -> list[list[Box]]:
    """The boxes left and right of the widest vertical gap, if both sides are columns of text."""
    ordered = sorted(boxes, key=lambda box: box.left)
    best, at, reached = 0.0, 0, 0.0
    for n, box in enumerate(ordered):
        if n and box.left - reached > best:
            best, at = box.left - reached, n
        reached = max(reached, box.right)
    sides = [ordered[:at], ordered[at:]]
    if best < _COLUMN_GAP * unit or not all(_is_column(side, unit) for side in sides):
        return []
    return sides


def _is_column(boxes: list[Box], unit: float) -> bool:
    bands = _bands(boxes)
    if len(bands) < _LEAST_LINES:
        return False
    width = max(box.right for box in boxes) - min(box.left for box in boxes)
    lines = [max(box.right for box in band) - min(box.left for box in band) for band in bands]
    return width >= _LEAST_WIDTH * unit and median(lines) >= _FILLED * width


def _bands(boxes: list[Box]) -> list[list[Box]]:
    """Lines from top to bottom, each from left to right, made of boxes whose centres are level."""
    bands: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: (box.top + box.bottom) / 2):
        middle = (box.top + box.bottom) / 2
        if bands and bands[-1][0].top <= middle <= bands[-1][0].bottom:
            bands[-1].append(box)
        else:
            bands.append([box])
    return [sorted(band, key=lambda box: box.left) for band in bands]


def _paragraphs(boxes: list[Box], unit: float) -> str:
    written: list[str] = []
    before: float | None = None
    for band in _bands(boxes):
        top = min(box.top for box in band)
        if before is not None:
            written.append("\n\n" if top - before > _PARAGRAPH_GAP * unit else "\n")
        before = max(box.bottom for box in band)
        reached: float | None = None
        for box in band:
            if reached is not None:
                written.append(" | " if box.left - reached > _CELL_GAP * unit else " ")
            written.append(box.text.strip())
            reached = box.right
    return "".join(written)
