"""Shared by the two kinds of `adamas bench`: lists of lengths, and the printing of figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from adamas_cli.commands.options import parse_length
from adamas_cli.errors import UsageError

Record = dict[str, Any]


def parse_lengths(text: str) -> list[int]:
    """The lengths of a list such as `4k,16k` or `4k-30k`, which doubles from 4k and ends with 30k; each once.

    Raises UsageError for a length of zero, typer.BadParameter for an invalid length.
    """
    found: list[int] = []
    for item in text.split(","):
        first, dash, last = (part.strip() for part in item.partition("-"))
        start, end = parse_length(first), parse_length(last if dash else first)
        if start < 1:
            raise UsageError("--len: a context has at least one token")
        if start > end:
            raise UsageError(f"--len {item}: a range begins with the shorter length")
        while start < end:
            found.append(start)
            start *= 2
        found.append(end)
    return list(dict.fromkeys(found))


def parse_batches(text: str) -> list[int]:
    """The numbers of a list such as `1,4,16`, in ascending order, each once. Raises UsageError."""
    numbers = {part.strip() for part in text.split(",")}
    if not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
        raise UsageError(f"--batch {text}: give numbers of answers, as in --batch 1,4,16")
    return sorted(map(int, numbers))


def tell(measured: Iterable[tuple[Record, str]], form: str) -> list[Record]:
    """Print figures, each a record and a Markdown line, as they arrive; return the rows.

    `csv` has only the rows, which are the records with a ratio, without lists.
    """
    from adamas_cli.lab.bench.table import csv_lines, json_line

    records = []
    for record, line in measured:
        records.append(record)
        if form == "md":
            print(line, flush=True)
        elif form == "jsonl":
            print(json_line(record), flush=True)
    rows = [record for record in records if "ratio" in record]
    if form == "json":
        print(json.dumps(records, ensure_ascii=False, indent=2))
    elif form == "csv":
        print(csv_lines([{key: x for key, x in row.items() if not isinstance(x, list)} for row in rows]))
    return rows


def say(text: str) -> None:
    """Print one progress line."""
    print(text, file=sys.stderr, flush=True)
