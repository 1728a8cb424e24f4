"""Words about work that goes on for long."""

from __future__ import annotations

import time
from collections.abc import Callable

SILENCE_SECONDS = 10.0  # between two words about the same work


class Pulse:
    """Says what is going on when it is new, and again every SILENCE_SECONDS."""

    def __init__(self, say: Callable[[str], None], about: str) -> None:
        self._say = say
        self._about = about
        self._doing = ""
        self._said = 0.0

    def beat(self, doing: str, done: int, total: int) -> None:
        """Work that has come to `done` of `total`."""
        now = time.monotonic()
        if doing != self._doing:
            self._say(f"{self._about}: {doing}")
        elif now - self._said >= SILENCE_SECONDS:
            self._say(f"{self._about}: {doing}, {done:,} of {total:,}")
        else:
            return
        self._doing, self._said = doing, now
