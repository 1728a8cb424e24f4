"""Rows of cells as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table whose head is the first row. Rows without text and empty cells at the end of a
    row are dropped.
    """
    wide = 0
    for row in rows:
        cells = [cell(text) for text in row]
        while cells and not cells[-1]:
            cells.pop()
        if not cells:
            continue
        if wide:
            yield _line([*cells, *[""] * (wide - len(cells))])
        else:
            wide = len(row)
            yield _line([*cells, *[""] * (wide - len(cells))])
            yield "|" + " --- |" * wide + "\n"


def cell(text: str) -> str:
    """A text made safe for one cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
