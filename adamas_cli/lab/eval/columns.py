"""How the values of a row are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adamas_cli.lab.eval.ledger import Record
from adamas_cli.sanitize import one_line


@dataclass(frozen=True)
class Column:
    """A column of the table: the value called `key` as text, with `low` and `high` beside it if asked,
    or what stands for one that is missing.
    """

    title: str
    key: str
    write: Callable[[Any], str] = str
    interval: bool = False
    missing: str = ""

    def cell(self, record: Record) -> str:
        """The text for one row."""
        value = record.get(self.key)
        if value is None:
            return self.missing
        if self.interval:
            low, high = (record[f"{self.key}_{end}"] for end in ("low", "high"))
            return f"{self.write(value)} ({self.write(low)} to {self.write(high)})"
        return one_line(self.write(value))


def with_readings(columns: Sequence[Column], *more: Column) -> list[Column]:
    """The columns of rows that do not all tell of densely read documents. more: about reading."""
    place = next(index for index, column in enumerate(columns) if column.key == "method")
    return [*columns[:place], Column("read", "read", missing="dense"), *more, *columns[place:]]


def decimals(digits: int) -> Callable[[float], str]:
    """Writes a number with this many digits after the point."""
    return lambda value: f"{value:,.{digits}f}"


def unless_zero(value: int) -> str:
    """Writes a budget: full attention has none."""
    return str(value) if value else ""
