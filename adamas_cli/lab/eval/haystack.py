"""Real prose as a haystack: cut to any length, with needles between sentences."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

# A full stop after these does not end a sentence.
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt|Col|Gen|Lt|Sr|Jr|vs|etc|[A-Z])\.$")
_BOUNDARY = re.compile(
    r"(?P<blank>\n[ \t]*\n\s*)"  # a paragraph
    r"|(?<=[.!?])[\"'\u201d\u2019)_]*\s+(?=[\"'\u201c\u2018(_]*[A-Z0-9])"  # Latin script
    r"|(?<=[\u3002\uff01\uff1f])[\u300d\u300f\u201d]*"  # no space follows these
)
BROKEN_OFF = " ..."


@dataclass(frozen=True)
class Needle:
    """A sentence to hide; depth: the percentage of the document's tokens before it."""

    depth: float
    text: str


class Haystack:
    """A text as sentences. count: returns the number of tokens in a piece of text."""

    def __init__(self, text: str, count: Callable[[str], int]) -> None:
        self.text = text
        self.sentences = sentences(text)
        self.count = count
        self._tokens: dict[int, int] = {}

    def excerpt(self, start: int, characters: int, needles: Sequence[Needle]) -> str:
        """The first `characters` from sentence `start` on, wrapping from the end of the text to its start,
        with each needle between two sentences, as close to its depth as possible. An unfinished last sentence
        ends in dots.
        """
        pieces, counts = self._pieces(start, characters)
        ends = [0, *accumulate(counts)]  # tokens before each boundary
        order = sorted(needles, key=lambda needle: needle.depth)
        hidden: dict[int, list[str]] = {}
        for needle in order:
            hidden.setdefault(_nearest(ends, needle.depth / 100 * ends[-1]), []).append(needle.text)
        text = ""
        for boundary in range(len(pieces) + 1):
            for needle_text in hidden.get(boundary, ()):
                text += ("" if not text or text[-1].isspace() else " ") + needle_text + " "
            text += pieces[boundary] if boundary < len(pieces) else ""
        return text.rstrip()

    def _pieces(self, start: int, characters: int) -> tuple[list[str], list[float]]:
        """Sentences with this many characters in total, and the tokens of each."""
        pieces: list[str] = []
        counts: list[float] = []
        index = start
        while characters > 0 and len(pieces) < len(self.sentences):
            sentence = self.sentences[index]
            if index not in self._tokens:
                self._tokens[index] = self.count(sentence)
            share = min(1.0, characters / len(sentence))
            counts.append(self._tokens[index] * share)
            whole = characters >= len(sentence.rstrip())
            pieces.append(sentence if whole else sentence[:characters].rstrip() + BROKEN_OFF)
            characters -= len(sentence)
            index = (index + 1) % len(self.sentences)
            if index == 0 and not pieces[-1][-1].isspace():
                pieces[-1] += "\n\n"
        return pieces, counts


def sentences(text: str) -> list[str]:
    """The text in pieces that end at the end of a sentence or paragraph; joined they are the text again."""
    found, begin = [], 0
    for match in _BOUNDARY.finditer(text):
        if match["blank"] is None and _ABBREVIATION.search(text, max(0, match.start() - 8), match.start()):
            continue
        if match.end() > begin:
            found.append(text[begin : match.end()])
            begin = match.end()
    return [*found, text[begin:]] if begin < len(text) else found


def fit(measure: Callable[[int], int], wanted: int, most: int) -> int | None:
    """The n in 0..most whose measure comes closest to `wanted` from below; None if that of 0 is above.

    The measure grows almost in proportion to n, so this takes only a few steps.
    """
    low, low_size = 0, measure(0)
    if low_size > wanted:
        return None
    high, high_size = most, measure(most)
    if high_size <= wanted:
        return most
    step = 0
    while high - low > 1:
        share = (wanted - low_size) / max(1, high_size - low_size)
        guess = (low + high) // 2 if step % 3 == 2 else low + round(share * (high - low))
        middle = min(max(guess, low + 1), high - 1)
        size = measure(middle)
        if size <= wanted:
            low, low_size = middle, size
        else:
            high, high_size = middle, size
        step += 1
    return low


def _nearest(ends: Sequence[float], position: float) -> int:
    """The index of the number nearest to `position` in an ascending sequence."""
    right = min(bisect_left(ends, position), len(ends) - 1)
    left = max(0, right - 1)
    return left if position - ends[left] <= ends[right] - position else right
