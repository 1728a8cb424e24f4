"""Tells what a thinking model thinks from what it answers."""

from __future__ import annotations

OPEN = "<think>"
CLOSE = "</think>"


class ReasoningSplitter:
    """Splits streamed text at `<think>` and `</think>`; the tags are in neither part.

    Only a `<think>` at the very start of the answer opens a thought: later ones are the answer's own text.
    `thinking` says that the prompt itself ended with the opening tag, as some chat templates do.
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self._thinking = thinking
        self._may_open = not thinking
        self._at_start = True  # leading white space of a part is dropped
        self._held = ""

    def feed(self, text: str) -> list[tuple[bool, str]]:
        """Pairs of (is it reasoning, text) that are certain by now; no text is empty."""
        self._held += text
        parts: list[tuple[bool, str]] = []
        if self._may_open:
            head = self._held.lstrip()
            if len(head) < len(OPEN) and OPEN.startswith(head):
                return parts
            self._may_open = False
            if head.startswith(OPEN):
                self._thinking, self._held = True, head[len(OPEN) :]
        if self._thinking:
            thought, closed, rest = self._held.partition(CLOSE)
            if not closed:
                kept = _overlap(thought, CLOSE)
                thought, self._held = thought[: len(thought) - kept], thought[len(thought) - kept :]
                return self._part(parts, thought)
            self._part(parts, thought)
            self._thinking, self._at_start, self._held = False, True, rest
        answer, self._held = self._held, ""
        return self._part(parts, answer)

    def flush(self) -> list[tuple[bool, str]]:
        """What was held back, at the end of the answer."""
        self._may_open = False
        held, self._held = self._held, ""
        return self._part([], held)

    def _part(self, parts: list[tuple[bool, str]], text: str) -> list[tuple[bool, str]]:
        if self._at_start:
            text = text.lstrip()
        if text:
            self._at_start = False
            parts.append((self._thinking, text))
        return parts


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` begin `tag`."""
    return next(n for n in range(min(len(text), len(tag) - 1), -1, -1) if text.endswith(tag[:n]))
