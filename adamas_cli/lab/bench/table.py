"""Rows of measurements as Markdown, CSV, JSON or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence


def markdown_head(titles: Sequence[str]) -> str:
    """The first two lines of a Markdown table with right-aligned columns."""
    return f"| {' | '.join(titles)} |\n|{'|'.join('---:' for _ in titles)}|"


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def print_rows(rows: Iterable[Mapping[str, object]], *, as_json: bool) -> None:
    """Print each row as soon as it is there, as a line of JSON or of one Markdown table."""
    for number, row in enumerate(rows):
        if as_json:
            print(json_line(row), flush=True)
            continue
        if number == 0:
            print(markdown_head(tuple(row)))
        print(markdown_row(tuple(str(value) for value in row.values())), flush=True)


def json_line(record: Mapping[str, object]) -> str:
    """One record on one line."""
    return json.dumps(record, ensure_ascii=False)


def csv_lines(records: Sequence[Mapping[str, object]]) -> str:
    """All records, which have the same keys, below a title line."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().rstrip("\n")
