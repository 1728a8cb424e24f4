"""How the values of a row are formatted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adamas_cli.lab.eval.ledger import Record
from adamas_cli.sanitize import one_line


@dataclass(frozen=True)
class Column:
    """A column of the table: the value of `key` as text, with `low` and `high` if `interval`; `missing`
    replaces a missing value.
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
    """The columns for rows that are not all about densely read documents. more: columns about reading."""
    place = next(index for index, column in enumerate(columns) if column.key == "method")
    return [*columns[:place], Column("read", "read", missing="dense"), *more, *columns[place:]]


def decimals(digits: int) -> Callable[[float], str]:
    """A writer of numbers with this many decimals."""
    return lambda value: f"{value:,.{digits}f}"


def unless_zero(value: int) -> str:
    """Write a budget; empty for full attention, which has none."""
    return str(value) if value else ""
