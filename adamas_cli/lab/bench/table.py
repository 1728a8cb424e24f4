"""Rows of measurements as Markdown, CSV, JSON or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence


def markdown_head(titles: Sequence[str]) -> str:
    """The first two lines of a Markdown table with right-aligned columns."""
    return f"| {' | '.join(titles)} |\n|{'|'.join('---:' for _ in titles)}|"


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


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
