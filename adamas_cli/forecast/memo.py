"""Small JSON files in the cache directory that hold what would take seconds to find out again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from adamas_cli.files import appearing
from adamas_cli.folders import cache_directory

_FORMAT = 1
_LARGEST = 32  # entries, of which the newest stay


class Memo:
    """One such file. Damaged ones hold nothing, and a disk that takes nothing is no reason to stop."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get(self, key: str) -> Any:
        """What was put last for a key; None for nothing."""
        return self._read().get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value, in place of the one that was there."""
        entries = self._read()
        entries.pop(key, None)
        entries[key] = value  # the last one is the newest
        newest = dict(list(entries.items())[-_LARGEST:])
        with suppress(OSError), appearing(self._file) as stream:
            stream.write(json.dumps({"format": _FORMAT, "entries": newest}).encode())

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
