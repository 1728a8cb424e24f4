"""The rows of a run on disk, one JSON line each, appended as they come; a later run continues from them.

The file of the table is written from it once all rows are there, so a journal that stays makes the next run
answer only what is new: other documents, changed ones, other questions.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from adamas_cli.errors import UsageError
from adamas_cli.mapping.rows import Row

SUFFIX = ".journal"
_FORMAT = 1
_NAMED = 5  # settings in a message


class Journal:
    """A context manager that holds the right to write to the journal. facts: what its answers depend on, as
    JSON values. retry: rows without an answer are not counted as rows.

    Raises UsageError if another process is writing, if the file is no journal, if it was begun with other
    facts, and if it cannot be written.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, retry: bool = False) -> None:
        self._path, self._retry = path, retry
        self._places: dict[bytes, int] = {}  # where the newest row of each key begins
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(f"`output`: cannot write {path}: {error.strerror}") from error
        try:
            self._lock()
            self._read(facts)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._places)

    def has(self, document: str, version: str, question: str) -> bool:
        """Whether it has a row for this question about this version of a document."""
        return _key(document, version, question) in self._places

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows: they are on disk when this returns."""
        end = os.lseek(self._file, 0, os.SEEK_END)
        lines = []
        for row in rows:
            lines.append(_line(asdict(row)))
            self._places[_key(row.document, row.version, row.question)] = end
            end += len(lines[-1])
        _write(self._file, b"".join(lines))
        os.fdatasync(self._file)

    def rows(self, keys: Iterable[tuple[str, str, str]]) -> Iterator[Row]:
        """The newest row for each document, version and question that has one, in this order."""
        with open(self._path, "rb") as stream:
            for key in keys:
                place = self._places.get(_key(*key))
                if place is not None:
                    stream.seek(place)
                    yield Row(**json.loads(stream.readline()))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another run is writing {self._path}") from error

    def _read(self, facts: Mapping[str, Any]) -> None:
        """Find the rows, and drop a last line that its writer did not finish."""
        whole = 0
        with open(self._path, "rb") as stream:
            for number, line in enumerate(stream):
                if not line.endswith(b"\n"):
                    break
                if number == 0:
                    self._check(line, facts)
                else:
                    self._take(line, number, whole)
                whole += len(line)
        os.ftruncate(self._file, whole)
        if not whole:
            _write(self._file, _line({"adamas map": _FORMAT, "settings": facts}))

    def _check(self, line: bytes, facts: Mapping[str, Any]) -> None:
        """Raises UsageError unless a first line says that the rows were made with these facts."""
        try:
            header = json.loads(line)
            known = header["settings"] if header["adamas map"] == _FORMAT else None
        except (ValueError, KeyError, TypeError):
            known = None
        if not isinstance(known, dict):
            raise UsageError(f"{self._path} is no journal of `adamas map`: name another file")
        others = sorted(name for name in known.keys() | facts.keys() if known.get(name) != facts.get(name))
        if others:
            named = ", ".join(others[:_NAMED])
            raise UsageError(
                f"{self._path} was begun with other settings ({named}): name another file, or remove it to "
                "begin anew"
            )

    def _take(self, line: bytes, number: int, place: int) -> None:
        try:
            row = Row(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{self._path}: line {number + 1} is no row; remove the file to begin anew"
            ) from error
        key = _key(row.document, row.version, row.question)
        if row.error and self._retry:
            self._places.pop(key, None)
        else:
            self._places[key] = place


def _key(document: str, version: str, question: str) -> bytes:
    return blake2b(json.dumps([document, version, question]).encode(), digest_size=16).digest()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
