"""From boxes with words in them to text in reading order: columns one after the other, rows kept.

The page is cut at its widest gaps, as in the recursive XY cut (Nagy and Seth, 1984).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

_COLUMN_GAP = 1.2  # of a line's height, between columns
_FILLED = 0.6  # of a column's width, by half of its lines: cells of tables are shorter
_LEAST_LINES = 3  # of a column
_PARAGRAPH_GAP = 0.9  # of a line's height, more than lines have between them
_CELL_GAP = 2.0  # of a line's height, inside of a line


@dataclass(frozen=True)
class Box:
    """A piece of a line, by its corners; `score` is how sure its text is."""

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
    """The boxes of columns and of what stands across them, in reading order."""
    columns = _columns(boxes, unit)
    if columns:
        return [block for column in columns for block in _blocks(column, unit)]
    bands = _bands(boxes)
    for at in range(1, len(bands)):  # what stands above columns, such as a title, goes before them
        below = [box for band in bands[at:] for box in band]
        if _columns(below, unit):
            above = [box for band in bands[:at] for box in band]
            return [above, *_blocks(below, unit)]
    for at in range(len(bands) - 1, 0, -1):  # and what stands below them behind
        above = [box for band in bands[:at] for box in band]
        if _columns(above, unit):
            return [*_blocks(above, unit), [box for band in bands[at:] for box in band]]
    return [boxes]


def _columns(boxes: list[Box], unit: float) -> list[list[Box]]:
    """The boxes left and right of the widest gap from top to bottom, if both are columns of text."""
    ordered = sorted(boxes, key=lambda box: box.left)
    best, at, reached = 0.0, 0, 0.0
    for n, box in enumerate(ordered):
        if n and box.left - reached > best:
            best, at = box.left - reached, n
        reached = max(reached, box.right)
    sides = [ordered[:at], ordered[at:]]
    if best < _COLUMN_GAP * unit or not all(_is_column(side) for side in sides):
        return []
    return sides


def _is_column(boxes: list[Box]) -> bool:
    bands = _bands(boxes)
    if len(bands) < _LEAST_LINES:
        return False
    width = max(box.right for box in boxes) - min(box.left for box in boxes)
    lines = [max(box.right for box in band) - min(box.left for box in band) for band in bands]
    return median(lines) >= _FILLED * width


def _bands(boxes: list[Box]) -> list[list[Box]]:
    """Lines from top to bottom, each from left to right, of boxes whose middles are as high."""
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
