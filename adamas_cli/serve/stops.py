"""Stop texts, which end an answer, found even if they arrive in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Passes on an answer's text up to the first of the stop texts, which must not be empty."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The text certain to come before every stop text; nothing once one was found."""
        if self.found:
            return ""
        self._held += text
        ends = [at for stop in self._texts if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._let_go(min(ends))
        longest = max((self._begun(stop) for stop in self._texts), default=0)
        return self._let_go(len(self._held) - longest)

    def flush(self) -> str:
        """The text held back, at the end of an answer without a stop text."""
        return "" if self.found else self._let_go(len(self._held))

    def _begun(self, stop: str) -> int:
        """How many characters at the end of the held text may begin a stop text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def _let_go(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text
