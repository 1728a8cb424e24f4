"""Progress notes about long-running work."""

from __future__ import annotations

import time
from collections.abc import Callable

SILENCE_SECONDS = 10.0  # seconds between two notes about the same work


class Pulse:
    """Reports work when it starts, and again every SILENCE_SECONDS."""

    def __init__(self, say: Callable[[str], None], about: str) -> None:
        self._say = say
        self._about = about
        self._doing = ""
        self._said = 0.0

    def beat(self, doing: str, done: int, total: int) -> None:
        """Report `done` of `total`."""
        now = time.monotonic()
        if doing != self._doing:
            self._say(f"{self._about}: {doing}")
        elif now - self._said >= SILENCE_SECONDS:
            self._say(f"{self._about}: {doing}, {done:,} of {total:,}")
        else:
            return
        self._doing, self._said = doing, now
