"""How the rows of a run are printed: a table on a terminal, Markdown in a pipe, or data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from adamas_cli.lab.bench.table import csv_lines, json_line, markdown_head, markdown_row
from adamas_cli.lab.eval.columns import Column
from adamas_cli.lab.eval.ledger import Record


class Report:
    """Prints rows on `stream`; a context manager, which prints the rest when it ends.

    form: `md`, `csv`, `json`, `jsonl`, or None for a table on a terminal and `md` elsewhere. On a terminal,
    all rows come at the end, even after an interruption, because progress is drawn above them. Elsewhere,
    each comes as it is measured, except in the single array of `json`.
    """

    def __init__(self, form: str | None, columns: Sequence[Column], stream: TextIO) -> None:
        self._columns = columns
        self._stream = stream
        self._held = stream.isatty()
        self._form = form or ("table" if self._held else "md")
        self._rows: list[Record] = []
        self._waiting: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            return
        for line in self._waiting:
            self._stream.write(line + "\n")
        if self._form == "json" and error is None:
            self._stream.write(json.dumps(self._rows, ensure_ascii=False, indent=2) + "\n")
        if self._form == "table" and self._rows:
            from adamas_cli.terminal.table import print_table

            cells = [[column.cell(row) for column in self._columns] for row in self._rows]
            print_table(self._stream, [column.title for column in self._columns], cells)
        self._stream.flush()

    def row(self, record: Record) -> None:
        """Print a row of the table."""
        self._rows.append(record)
        if self._form == "md":
            if len(self._rows) == 1:
                self._say(markdown_head([column.title for column in self._columns]))
            self._say(markdown_row([column.cell(record).replace("|", "\\|") for column in self._columns]))
        elif self._form == "csv":
            # Lists, such as figures by layer, do not fit in a cell.
            flat = {key: value for key, value in record.items() if not isinstance(value, list)}
            text = csv_lines([flat])
            self._say(text if len(self._rows) == 1 else text.partition("\n")[2])
        else:
            self.detail(record)

    def detail(self, record: Record) -> None:
        """Print a record that rows are made of, such as a single answer: only in `jsonl`."""
        if self._form == "jsonl":
            self._say(json_line(record))

    def _say(self, line: str) -> None:
        if self._held:
            self._waiting.append(line)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()
