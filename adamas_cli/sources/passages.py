"""From an answer's attention to each token to the most-attended passages of the documents.

For every token of an answer, sparse attention chooses a few tokens to read; these choices are counted. The
counts show where the model looked; they are not evidence for what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adamas_cli.prompt.linemap import Location
    from adamas_cli.prompt.tokens import Tokenizer

    Locate = Callable[[int], Location | None]

LONGEST_PASSAGE = 5  # lines
NEIGHBOUR = 0.1  # of the best line's weight: from here on, a line beside it belongs to its passage
EXCERPT = 160  # characters
EXCERPT_TOKENS = 120  # tokens examined for one excerpt
STRIP = 200  # parts of the documents in a heat strip
LEAST_SHARE = 0.005  # minimum share of a passage to be shown


@dataclass(frozen=True)
class Passage:
    """Lines of one document. share: of the attention to all documents' tokens, 0 to 1. section: such as
    `page 12`, if the document has sections.
    """

    path: str
    first_line: int
    last_line: int
    section: str | None
    share: float
    excerpt: str

    def as_json(self) -> dict[str, object]:
        """The passage as JSON."""
        record: dict[str, object] = {
            "path": self.path,
            "first_line": self.first_line,
            "last_line": self.last_line,
            "share": round(self.share, 4),
            "excerpt": self.excerpt,
        }
        return record if self.section is None else record | {"section": self.section}

    @property
    def place(self) -> str:
        """For example `book.txt:120-122` or `report.pdf, page 12`."""
        if self.section is not None:
            return f"{self.path}, {self.section}"
        if self.first_line == self.last_line:
            return f"{self.path}:{self.first_line}"
        return f"{self.path}:{self.first_line}-{self.last_line}"


@dataclass(frozen=True)
class Sources:
    """passages: the most-attended ones, by share. strip: the share of each of up to STRIP equal parts of the
    documents, from start to end, relative to the largest.
    """

    passages: tuple[Passage, ...]
    strip: tuple[float, ...]


def find_sources(
    weights: np.ndarray, locate: Locate, ids: np.ndarray, tokenizer: Tokenizer, count: int
) -> Sources:
    """The `count` most-attended passages.

    weights: float [n or more], of each of the tokens int [n]. locate: where a token was read; tokens outside
    documents do not count.
    """
    lines = [locate(index) for index in range(len(ids))]
    weight = np.array([0.0 if line is None else weights[i] for i, line in enumerate(lines)])
    total = float(weight.sum())
    if total <= 0:
        return Sources((), ())
    # Lines as numbers in prompt order, -1 outside documents: adjacent lines differ by one, lines with
    # something else between them by more.
    numbers = np.full(len(ids), -1)
    number, before = -2, None
    for index, line in enumerate(lines):
        if line is not None:
            number += 2 if before is None else line.line - before.line
            numbers[index] = number
        before = line
    inside = numbers >= 0
    by_line = np.bincount(numbers[inside], weights=weight[inside])
    passages: list[Passage] = []
    for first, last in _best(by_line, count):
        tokens = np.flatnonzero((numbers >= first) & (numbers <= last))
        share = float(weight[tokens].sum()) / total
        if share < LEAST_SHARE and passages:
            break
        begin, end = lines[tokens[0]], lines[tokens[-1]]
        assert begin is not None
        assert end is not None
        excerpt = _excerpt(ids, weight, tokens, tokenizer)
        passages.append(Passage(begin.path, begin.line, end.line, begin.section, share, excerpt))
    passages.sort(key=lambda passage: -passage.share)
    return Sources(tuple(passages), tuple(_strip(weight[inside]).tolist()))


def _best(by_line: np.ndarray, count: int) -> list[tuple[int, int]]:
    """First and last line of each passage around the heaviest lines; passages do not overlap."""
    left = by_line.copy()
    found: list[tuple[int, int]] = []
    while len(found) < count and left.max() > 0:
        first = last = int(left.argmax())
        least = left[first] * NEIGHBOUR
        while last - first + 1 < LONGEST_PASSAGE:
            above = left[first - 1] if first > 0 else 0.0
            below = left[last + 1] if last + 1 < len(left) else 0.0
            if max(above, below) <= least:
                break
            if above >= below:
                first -= 1
            else:
                last += 1
        left[first : last + 1] = 0
        found.append((first, last))
    return found


def _excerpt(ids: np.ndarray, weight: np.ndarray, tokens: np.ndarray, tokenizer: Tokenizer) -> str:
    """One line of text around the most-attended token."""
    peak = int(weight[tokens].argmax())
    start = max(0, min(peak - EXCERPT_TOKENS // 3, len(tokens) - EXCERPT_TOKENS))
    chosen = tokens[start : start + EXCERPT_TOKENS]
    text, at = _text(ids[chosen], tokenizer, peak - start)
    at = len(" ".join(text[:at].split()))
    text = " ".join(text.split())
    if len(text) <= EXCERPT and len(chosen) == len(tokens):
        return text
    begin = max(0, min(at - EXCERPT // 3, len(text) - EXCERPT))
    if begin:
        begin = text.find(" ", begin) + 1 or begin
    cut = text[begin : begin + EXCERPT]
    whole = begin + EXCERPT >= len(text) and start + EXCERPT_TOKENS >= len(tokens)
    if not whole and " " in cut:
        cut = cut[: cut.rindex(" ")]
    return ("… " if begin or start else "") + cut + ("" if whole else " …")


def _text(ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer, mark: int) -> tuple[str, int]:
    """The text of tokens, and the index of the character at which token number `mark` begins."""
    parts = [tokenizer.token_bytes(int(token)) for token in ids]
    before = b"".join(parts[:mark]).decode("utf-8", "ignore")
    return b"".join(parts).decode("utf-8", "replace"), len(before)


def _strip(weight: np.ndarray) -> np.ndarray:
    """Shares of equal parts, relative to the largest."""
    parts = np.array([part.sum() for part in np.array_split(weight, min(STRIP, len(weight)))])
    return parts / parts.max()
