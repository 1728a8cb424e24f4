"""What a table of many rows costs the machine that `adamas map` runs on: its journal, memory and writing.

python docs/measure_map.py --documents 100000
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from adamas_cli.documents.apart import Source
from adamas_cli.mapping.journal import Journal
from adamas_cli.mapping.rows import Row, columns, record
from adamas_cli.mapping.tables import write_table

Result = TypeVar("Result")

QUESTIONS = ("Who are the parties?", "When does it end?")
ANSWER = "The agreement is made between the two companies named above and ends after five years. " * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--format", default="csv", choices=("csv", "jsonl", "parquet"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        measure(Path(folder), chosen.documents, chosen.format)


def measure(folder: Path, count: int, suffix: str) -> None:
    """Print each figure with its unit."""
    file, rows = folder / "rows.journal", count * len(QUESTIONS)
    sources, grown = memory(lambda: list(map(source, range(count))))
    print(f"listing: {grown / count:,.0f} bytes of memory a document")
    with Journal(file, {}) as journal:
        seconds = timed(lambda: fill(journal, sources))
    print(f"journal: {count / seconds:,.0f} documents/s, {file.stat().st_size / rows:,.0f} bytes a row")
    journal, grown = memory(lambda: Journal(file, {}))
    print(f"index: {grown / rows:,.0f} bytes of memory a row")
    with journal:
        keys = ((one.name, one.version, text) for one in sources for text in QUESTIONS)
        records = (record(row, None) for row in journal.rows(keys))
        table = folder / f"table.{suffix}"
        seconds = timed(lambda: write_table(table, columns(None), records))
    print(f"table: {rows / seconds:,.0f} rows/s, {table.stat().st_size / rows:,.0f} bytes a row")


def source(number: int) -> Source:
    name = f"contracts/{number:09}.pdf"
    return Source(name, f"s3://bucket/{name}", 250_000, f"250000:2026-11-27 00:00:{number:09}")


def fill(journal: Journal, sources: list[Source]) -> None:
    for one in sources:
        journal.add(
            [
                Row(one.name, one.version, text, ANSWER, tokens=4096, answer_tokens=60, reused=4000)
                for text in QUESTIONS
            ]
        )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def memory(work: Callable[[], Result]) -> tuple[Result, int]:
    """What a call returns, and the bytes that it has left allocated."""
    tracemalloc.start()
    result = work()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, grown


if __name__ == "__main__":
    main()
