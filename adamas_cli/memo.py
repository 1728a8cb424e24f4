"""Small JSON files in the cache directory for results that take seconds to compute."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from adamas_cli.files import appearing
from adamas_cli.folders import cache_directory

_FORMAT = 1
_LARGEST = 32  # maximum number of entries; the newest are kept


class Memo:
    """One such file. A damaged file counts as empty, and write errors are ignored."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get(self, key: str) -> Any:
        """The last value of a key; None if there is none."""
        return self._read().get(key)

    def put(self, key: str, value: Any) -> bool:
        """Store a JSON value, replacing an earlier one; returns whether it could be written."""
        entries = self._read()
        entries.pop(key, None)
        entries[key] = value  # the last one is the newest
        newest = dict(list(entries.items())[-_LARGEST:])
        with suppress(OSError), appearing(self._file) as stream:
            stream.write(json.dumps({"format": _FORMAT, "entries": newest}).encode())
        return self.get(key) == value

    @property
    def _file(self) -> Path:
        return cache_directory() / self._name

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            entries = content["entries"] if content["format"] == _FORMAT else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return entries if isinstance(entries, dict) else {}
