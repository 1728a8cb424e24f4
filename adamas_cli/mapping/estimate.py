"""The remaining time of a run, from the documents done so far."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

from adamas_cli.documents.apart import Source

_LEAST = 3  # documents before there is an estimate


class Estimate:
    """Documents of one suffix take time by their bytes: a byte of a PDF is less text than one of a text file.

    Work done and to do is in seconds of one worker; the clock tells how many work at once.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._left: Counter[str] = Counter()  # bytes, by suffix
        self._bytes: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._done = 0
        self._began = self._last = time.monotonic()
        for source in sources:
            self._left[_suffix(source)] += _size(source)

    def add(self, source: Source, seconds: float) -> None:
        """A document is done, after this much work."""
        suffix = _suffix(source)
        self._left[suffix] -= _size(source)
        self._bytes[suffix] += _size(source)
        self._seconds[suffix] += seconds
        self._done += 1
        self._last = time.monotonic()

    def remaining(self) -> float | None:
        """Seconds until the end; None after too few documents."""
        worked = sum(self._seconds.values())
        if self._done < _LEAST or not worked:
            return None
        by_byte = worked / self._bytes.total()
        work = sum(
            left * (self._seconds[suffix] / self._bytes[suffix] if self._bytes[suffix] else by_byte)
            for suffix, left in self._left.items()
        )
        passed = time.monotonic() - self._last
        return max(0.0, work * (self._last - self._began) / worked - passed)


def _suffix(source: Source) -> str:
    return os.path.splitext(source.name)[1].lower()


def _size(source: Source) -> int:
    return max(1, source.bytes)  # pages of the web have no size before they are fetched
