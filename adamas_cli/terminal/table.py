"""A table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST = 20  # columns: with fewer, rich drops content from lists and tables
_WIDE = 60  # columns of a table that a narrower terminal wraps


def print_table(stream: TextIO, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells under titles; columns of numbers are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(titles):
        cells = [row[index] for row in rows]
        numeric = all(cell[:1].isdigit() or cell[:1] in ("", "-") for cell in cells)
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=stream, highlight=False)
    if console.width < NARROWEST:
        console = Console(file=stream, highlight=False, width=_WIDE)
    console.print(table)
