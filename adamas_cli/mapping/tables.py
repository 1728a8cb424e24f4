"""Rows as a file: JSON lines, CSV or Parquet, by the file's suffix."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from adamas_cli.errors import UsageError
from adamas_cli.mapping.rows import Column
from adamas_cli.output import replacing_bytes

_AT_ONCE = 1000  # rows in memory

Record = dict[str, Any]
Writer = Callable[[BinaryIO, Sequence[Column], Iterable[Record]], None]


def writer_for(path: Path) -> Writer:
    """How a table is written to a file of this name. Raises UsageError for another suffix, and if a package
    is missing.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"`output` {path}: a table ends in {', '.join(WRITERS)}")
    if writer is _parquet and find_spec("pyarrow") is None:
        raise UsageError(
            "a Parquet file needs pyarrow: pip install 'adamas[cluster]'; or write .jsonl or .csv"
        )
    return writer


def write_table(path: Path, columns: Sequence[Column], records: Iterable[Record]) -> None:
    """Write a table, completely or not at all. Raises UsageError."""
    writer = writer_for(path)
    with replacing_bytes(path) as stream:
        writer(stream, columns, records)


def _jsonl(stream: BinaryIO, columns: Sequence[Column], records: Iterable[Record]) -> None:
    for record in records:
        ordered = {column.name: record[column.name] for column in columns}
        stream.write(json.dumps(ordered, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _csv(stream: BinaryIO, columns: Sequence[Column], records: Iterable[Record]) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in columns)
    for record in records:
        writer.writerow(_flat(record[column.name], column) for column in columns)
    text.flush()
    text.detach()


def _parquet(stream: BinaryIO, columns: Sequence[Column], records: Iterable[Record]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    schema = pa.schema([(column.name, types.get(column.type, pa.string())) for column in columns])
    with parquet.ParquetWriter(stream, schema) as writer:
        for some in _batches(records):
            values = [[_flat(record[column.name], column) for record in some] for column in columns]
            arrays = [
                pa.array(of_column, field.type) for of_column, field in zip(values, schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    left = iter(records)
    while some := list(islice(left, _AT_ONCE)):
        yield some


def _flat(value: Any, column: Column) -> Any:
    """A value for a column of one type: JSON where it has another one."""
    if value is None or column.type != "json":
        return value
    return json.dumps(value, ensure_ascii=False)


WRITERS: dict[str, Writer] = {".parquet": _parquet, ".jsonl": _jsonl, ".csv": _csv}
