"""The answer of a part as notes for the next merge: complete sentences, each once."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+|\n+")  # noqa: RUF001, as other scripts end sentences


def as_notes(answer: str, *, cut: bool) -> str:
    """The answer without repeated sentences, which small models write until they are stopped.

    cut: it was stopped in the middle, so its last sentence counts only if there is no other.
    """
    said: set[str] = set()
    kept: list[str] = []
    start, text = 0, answer.strip()
    ends = [match.span() for match in _SENTENCE_END.finditer(text)]
    if not cut or not ends:
        ends.append((len(text), len(text)))
    for end, following in ends:
        sentence = text[start:end].strip()
        if sentence not in said:
            said.add(sentence)
            kept.append(text[start:following])
        start = following
    return "".join(kept).strip()
