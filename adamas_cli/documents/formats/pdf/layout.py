"""The reading order of a PDF page's text: lines, columns one after the other, rows of tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from adamas_cli.documents.formats.pdf.runs import (
    GAP,
    LEADER,
    NARROW_GAP,
    Run,
    around,
    in_line,
    is_apart,
    joined,
)
from adamas_cli.documents.formats.pdf.tables import borderless, column_bounds

_MIN_ROWS = 3  # of columns of prose
_FILLED = 0.8  # share of a column's width that lines of prose fill
_FILLED_TALL = 0.65  # the same with many rows, where a table is less likely
_TALL = 20  # rows
_PROSE_CHARACTERS = 20  # median per line
_DEPTH = 8  # of nested columns
_SHORT = 12  # mean number of characters of a cell beside a narrow gap


class _Zone(NamedTuple):
    """The rows up to `end`, with a gap around `middle`. `narrow`: too narrow for columns of prose."""

    end: int
    middle: float
    narrow: bool


def read_order(runs: Sequence[Run], depth: int = 0) -> list[Run]:
    """The lines of the page in order; a table is a single line with several lines of text."""
    rows = _rows(runs)
    lines: list[Run] = []
    at = 0
    while at < len(rows):
        zone = _zone(rows, at) if depth < _DEPTH else None
        if zone is None:
            lines.append(_line(rows[at]))
            at += 1
            continue
        inside = rows[at : zone.end]
        if not zone.narrow and _is_prose(inside, zone.middle):
            for first in (True, False):
                side = [run for row in inside for run in row if (run.left < zone.middle) == first]
                lines += read_order(side, depth + 1)
        else:
            lines += borderless(inside)
        at = zone.end
    return lines


def _rows(runs: Sequence[Run]) -> list[list[Run]]:
    """Rows of runs on the same line, from top to bottom, each from left to right."""
    rows: list[list[Run]] = []
    bounds: list[tuple[float, float]] = []
    for run in sorted(runs, key=lambda run: -run.middle):
        if rows:
            low, high = bounds[-1]
            if min(high, run.high) - max(low, run.low) > 0.5 * min(high - low, run.height):
                rows[-1].append(run)
                continue
        rows.append([run])
        bounds.append((run.low, run.high))
    ordered = (sorted(row, key=lambda run: run.left) for row in rows)
    return [[_one(row)] if _has_leader(row) else _merged(row) for row in ordered]


def _has_leader(row: list[Run]) -> bool:
    """Whether dot leaders connect cells, as in a table of contents."""
    last = row[-1]
    return any(run.text.endswith(LEADER) for run in row[:-1]) or (
        not last.table and LEADER in last.text[-12:]
    )


def _merged(row: list[Run]) -> list[Run]:
    """A row's cells: runs without a gap between them are joined."""
    cells: list[list[Run]] = [[row[0]]]
    for run in row[1:]:
        before = cells[-1][-1]
        height = min(run.height, before.height)
        apart = is_apart(before.text, run.left - before.right, height, NARROW_GAP)
        if apart or run.table or before.table:
            cells.append([run])
        else:
            cells[-1].append(run)
    return [_one(cell) for cell in cells]


def _one(runs: list[Run]) -> Run:
    return runs[0] if len(runs) == 1 else around(runs, joined(runs))


def _line(cells: list[Run]) -> Run:
    if any(cell.table for cell in cells):
        return around(cells, "\n".join(cell.text for cell in cells), table=True)
    return cells[0] if len(cells) == 1 else around(cells, in_line(cells))


def _zone(rows: list[list[Run]], start: int) -> _Zone | None:
    """The rows from `start` on that share a vertical gap. A narrow gap counts only if there is no wide one
    and short cells stand on both sides.
    """
    first = next((at for at in range(start, min(start + 3, len(rows))) if len(rows[at]) > 1), None)
    if first is None or any(map(_has_leader, rows[start : first + 1])):
        return None
    if any(_wide_break(rows, at) for at in range(start + 1, first + 1)):
        return None
    if first > start and not _side_by_side(rows, start, first):
        return None
    wide = _longest(rows, start, first, GAP)
    if wide is not None:
        return wide
    narrow = _longest(rows, start, first, NARROW_GAP)
    if narrow is None:
        return None
    cells = [cell.text for row in rows[start : narrow.end] if len(row) > 1 for cell in row]
    several = sum(len(row) > 1 for row in rows[start : narrow.end])
    short = bool(cells) and sum(map(len, cells)) <= _SHORT * len(cells)
    return narrow if several >= _MIN_ROWS and short else None


def _longest(rows: list[list[Run]], start: int, first: int, least: float) -> _Zone | None:
    """The gap in row `first` that runs through most rows."""
    best: _Zone | None = None
    for left, right in itertools.pairwise(rows[first]):
        gap = (left.right, right.left)
        narrow = least * min(left.height, right.height)
        if gap[1] - gap[0] < narrow or left.table or right.table:
            continue
        if any(_narrowed(rows[at], gap, narrow) is None for at in range(start, first)):
            continue
        end, seen = first, first
        for at in range(first, len(rows)):
            if at > first and (_has_leader(rows[at]) or _wide_break(rows, at)):
                break
            found = _narrowed(rows[at], gap, narrow)
            if found is None:
                break
            gap, end = found, at + 1
            if len(rows[at]) > 1:
                seen = at + 1
        if not _one_sided_tail(rows[seen:end], gap):
            end = seen
        if best is None or end > best.end:
            best = _Zone(end, sum(gap) / 2, least < GAP)
    return best


def _one_sided_tail(rows: list[list[Run]], gap: tuple[float, float]) -> bool:
    """Whether the rows after the last one with both sides continue in one column, like its lines."""
    return len(rows) > 1 or all(row[0].left > gap[0] for row in rows)


def _side_by_side(rows: list[list[Run]], start: int, first: int) -> bool:
    """Whether single lines before the first row with a gap belong to one of its columns."""
    return all(
        any(abs(row[0].left - cell.left) < 2 for cell in rows[first]) and len(row[0].text) > _PROSE_CHARACTERS
        for row in rows[start:first]
    )


def _narrowed(row: list[Run], gap: tuple[float, float], narrow: float) -> tuple[float, float] | None:
    """What remains of a gap after this row; None if the row closes it."""
    low, high = gap
    for cell in row:
        if cell.right <= low or cell.left >= high:
            continue
        inside_left, inside_right = cell.left - low, high - cell.right
        if inside_left >= inside_right:
            high = cell.left
        else:
            low = cell.right
        if high - low < narrow:
            return None
    return low, high


def _wide_break(rows: list[list[Run]], at: int) -> bool:
    """Whether the white space above a row exceeds that between lines, or between the neighbouring rows."""
    white = _white(rows, at)
    height = max(cell.height for cell in rows[at])
    around = [_white(rows, near) for near in (at - 1, at + 1) if 0 < near < len(rows)]
    uneven = any(white > 1.8 * max(other, 0.2 * height) for other in around)
    return white > (0.8 if uneven else 1.2) * height and (uneven or len(rows[at]) == 1)


def _white(rows: list[list[Run]], at: int) -> float:
    return min(cell.low for cell in rows[at - 1]) - max(cell.high for cell in rows[at])


def _is_prose(zone: list[list[Run]], middle: float) -> bool:
    """Whether both sides of the gap are columns of running text rather than of a table."""
    lefts = [[run for run in row if run.left < middle] for row in zone]
    rights = [[run for run in row if run.left >= middle] for row in zone]
    sides = [[row for row in side if row] for side in (lefts, rights)]
    if min(len(side) for side in sides) < 2:
        return False
    both = sum(bool(a) and bool(b) for a, b in zip(lefts, rights, strict=True))
    if both <= 0.4 * min(len(side) for side in sides):
        return True  # the lines of the two sides are not level
    if min(len(side) for side in sides) < _MIN_ROWS:
        return False
    filled = _FILLED_TALL if len(zone) >= _TALL else _FILLED
    columns = column_bounds(zone)
    if len(columns) > 2:  # in prose, each of them is a column of text
        sides = [[row for row in _within(zone, bounds) if row] for bounds in columns]
    return all(_is_running(side, filled) for side in sides)


def _within(zone: list[list[Run]], bounds: tuple[float, float]) -> list[list[Run]]:
    return [[run for run in row if bounds[0] <= (run.left + run.right) / 2 <= bounds[1]] for row in zone]


def _is_running(side: list[list[Run]], filled: float) -> bool:
    """Whether most lines of a column are about as long as the longest, not single words or numbers."""
    if not side:
        return False
    widths = [max(run.right for run in row) - min(run.left for run in row) for row in side]
    characters = [sum(len(run.text) for run in row) for row in side]
    return median(widths) >= filled * max(widths) and median(characters) >= _PROSE_CHARACTERS
