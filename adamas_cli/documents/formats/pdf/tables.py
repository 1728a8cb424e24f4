"""Tables of a PDF page as Markdown, with rules or only gaps between their cells."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from adamas_cli.documents.formats.pdf.rules import Rule
from adamas_cli.documents.formats.pdf.runs import Run, around, in_line, joined

_NEAR = 2.5  # points: distance at which ends of rules meet
_LONGEST_CELL = 40  # mean characters in the second of two columns without rules
_GOING_ON = 0.3  # share of a list's rows that have no term
_FILLED = 0.2  # share of a table's cells
_MIN_ROWS = 3


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows with equally many cells as a Markdown table; the first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def borderless(zone: Sequence[Sequence[Run]]) -> list[Run]:
    """The rows of a zone with a continuous gap, as a table if the cells form columns."""
    several = [at for at, row in enumerate(zone) if len(row) > 1]
    if not several:
        return _lines(zone)
    first, last = several[0], several[-1] + 1
    inside = zone[first:last]
    columns = column_bounds(inside)
    rows = [_cells(row, columns) for row in inside]
    several_cells = sum(sum(map(bool, row)) > 1 for row in rows)
    if len(columns) < 2 or several_cells < _MIN_ROWS or _is_list(rows) or _is_text(rows) or _is_sparse(rows):
        return _lines(zone)
    table = around([run for row in inside for run in row], markdown_table(rows), table=True)
    before, after = zone[:first], zone[last:]
    return [*_lines(before), table, *_lines(after)]


def _lines(rows: Sequence[Sequence[Run]]) -> list[Run]:
    return [around(row, in_line(row)) for row in rows]


def _is_sparse(rows: Sequence[Sequence[str]]) -> bool:
    """Whether nearly all cells would be empty, because no columns share the gaps."""
    filled = sum(sum(map(bool, row)) for row in rows)
    return filled < _FILLED * len(rows) * len(rows[0])


def _is_text(rows: Sequence[Sequence[str]]) -> bool:
    """Whether there are whole lines of text among the rows, so that the gaps belong to text as well."""
    lines = [row for row in rows if sum(map(bool, row)) == 1 and max(map(len, row)) > _LONGEST_CELL]
    return len(lines) >= _GOING_ON * len(rows)


def _is_list(rows: Sequence[Sequence[str]]) -> bool:
    """Whether it is a list of terms with explanations that continue over several lines."""
    first = [row[0] for row in rows]
    lengths = [len(row[-1]) for row in rows if row[-1]]
    going_on = first.count("") >= _GOING_ON * len(rows)
    return len(rows[0]) == 2 and (going_on or sum(lengths) > _LONGEST_CELL * len(lengths))


def ruled(
    runs: Sequence[Run], across: Sequence[Rule], upright: Sequence[Rule]
) -> tuple[list[Run], list[Run]]:
    """The tables whose cells have lines around them, and the runs outside them."""
    rest = list(runs)
    tables: list[Run] = []
    for xs, ys in _grids(across, upright):
        inside = [
            run
            for run in rest
            if xs[0] - _NEAR < (run.left + run.right) / 2 < xs[-1] + _NEAR and ys[0] < run.middle < ys[-1]
        ]
        rows: list[list[list[Run]]] = [[[] for _ in xs[1:]] for _ in ys[1:]]
        for run in inside:
            column = min(sum(x <= run.left + _NEAR for x in xs[1:]), len(xs) - 2)
            row = min(sum(y <= run.middle for y in ys[1:]), len(ys) - 2)
            rows[len(ys) - 2 - row][column].append(run)
        texts = [[_cell(cell) for cell in row] for row in rows]
        texts = [row for row in texts if any(row)]
        used = [at for at in range(len(xs) - 1) if any(row[at] for row in texts)]
        if len(used) < 2 or len(texts) < 2:
            continue
        texts = [[row[at] for at in used] for row in texts]
        taken = set(map(id, inside))
        rest = [run for run in rest if id(run) not in taken]
        order = min(run.order for run in inside)
        tables.append(Run(markdown_table(texts), xs[0], ys[0], xs[-1], ys[-1], order, True))
    return tables, rest


def _cell(runs: list[Run]) -> str:
    lines: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: (-run.middle, run.left)):
        if lines and run.middle > lines[-1][0].low:
            lines[-1].append(run)
        else:
            lines.append([run])
    return " ".join(joined(sorted(line, key=lambda run: run.left)) for line in lines)


def _grids(across: Sequence[Rule], upright: Sequence[Rule]) -> list[tuple[list[float], list[float]]]:
    """The grids of intersecting rules: the positions of upright rules and of rules across."""
    parents = list(range(len(across) + len(upright)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    for a, one in enumerate(across):
        for b, other in enumerate(upright):
            meets_x = one.start - _NEAR <= other.at <= one.end + _NEAR
            if meets_x and other.start - _NEAR <= one.at <= other.end + _NEAR:
                parents[root(a)] = root(len(across) + b)
    groups: dict[int, tuple[list[float], list[float]]] = {}
    for at in range(len(parents)):
        xs, ys = groups.setdefault(root(at), ([], []))
        if at < len(across):
            ys.append(across[at].at)
        else:
            xs.append(upright[at - len(across)].at)
    grids = [(_distinct(xs), _distinct(ys)) for xs, ys in groups.values()]
    return [(xs, ys) for xs, ys in grids if len(xs) > 2 and len(ys) > 2]


def _distinct(places: list[float]) -> list[float]:
    kept: list[float] = []
    for place in sorted(places):
        if not kept or place - kept[-1] > _NEAR:
            kept.append(place)
    return kept


def column_bounds(zone: Sequence[Sequence[Run]]) -> list[tuple[float, float]]:
    """The horizontal extents of columns, by most rows; a gap that few cells cross still separates columns."""
    several = [row for row in zone if len(row) > 1]
    changes: Counter[float] = Counter()  # in the number of rows that have a cell there
    for row in several:
        reached = float("-inf")
        for run in row:  # from the left
            if run.right > reached:
                changes[max(run.left, reached)] += 1
                changes[run.right] -= 1
                reached = run.right
    columns: list[tuple[float, float]] = []
    covered = 0
    for start, end in itertools.pairwise(sorted(changes)):
        covered += changes[start]
        if covered <= 0.1 * len(several):
            continue
        if columns and columns[-1][1] == start:
            columns[-1] = (columns[-1][0], end)
        else:
            columns.append((start, end))
    return columns


def _cells(row: Sequence[Run], columns: list[tuple[float, float]]) -> list[str]:
    cells: list[list[str]] = [[] for _ in columns]
    for run in row:
        overlaps = [min(run.right, end) - max(run.left, start) for start, end in columns]
        first = next((at for at, overlap in enumerate(overlaps) if overlap > 0), len(columns) - 1)
        cells[first].append(run.text)
    return [" ".join(cell) for cell in cells]
