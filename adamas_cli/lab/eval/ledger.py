"""The file in which a run keeps its rows: appended as they are measured, and continued by a later run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamas_cli.errors import UsageError

Record = dict[str, Any]
"""One row as JSON: first what identifies it (model, text, settings), then what was measured."""


class Ledger:
    """Rows in a file of JSON lines. Rows of other runs stay in the file and are never found.

    path: None keeps nothing. resume: find the rows already in the file. A truncated last line is removed
    before the first row is written. Raises UsageError if the file holds something else, or cannot be read or
    written.
    """

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self._path = path
        self._records: list[Record] = []
        self._indexes: dict[tuple[str, ...], dict[str, Record]] = {}
        self._found: set[int] = set()
        self._whole = 0  # bytes of complete lines
        self._unended = False
        self._file: int | None = None
        if path is None:
            return
        try:
            content = path.read_bytes() if path.exists() else b""
            if not os.access(path if path.exists() else path.parent, os.W_OK):
                raise PermissionError(0, "cannot be written" if path.parent.exists() else "no such folder")
        except OSError as error:
            raise UsageError(f"`output` {path}: {error.strerror}") from None
        self._parse(path, content)
        if not resume:
            self._records = []

    @property
    def foreign(self) -> int:
        """Rows of the file that were never found."""
        return len(self._records) - len(self._found)

    def find(self, identity: Mapping[str, object]) -> Record | None:
        """The newest row of the file with all of these values, or None."""
        names = tuple(identity)
        if names not in self._indexes:
            self._indexes[names] = {_key(names, record): record for record in self._records}
        record = self._indexes[names].get(_key(names, identity))
        if record is not None:
            self._found.add(id(record))
        return record

    def add(self, record: Record) -> None:
        """Append one row; it is completely in the file when this returns."""
        if self._path is None:
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, self._whole)
            if self._unended:
                os.write(self._file, b"\n")
        # One system call, so that an interruption cannot leave part of a line.
        os.write(self._file, json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def _parse(self, path: Path, content: bytes) -> None:
        """Load the rows of the file."""
        lines = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            last = number == len(lines)
            if line.strip():
                record = _record(line)
                if record is None:
                    if last and line.startswith(b"{"):
                        break  # its writer was killed
                    raise UsageError(
                        f"`output` {path}: line {number} is no row of `adamas eval`; name another file"
                    )
                self._records.append(record)
                self._unended = last
            self._whole += len(line) + (not last)


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _key(names: tuple[str, ...], values: Mapping[str, object]) -> str:
    return json.dumps([values.get(name) for name in names])
