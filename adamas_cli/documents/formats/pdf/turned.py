"""Runs of a PDF page from the positions of all its characters, in their writing directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from adamas_cli.documents.formats.pdf.characters import HYPHEN_MARK, Characters
from adamas_cli.documents.formats.pdf.rules import Rule, Rules, turned_box
from adamas_cli.documents.formats.pdf.runs import GAP, NARROW_GAP, SPACE, STOPS, Run, tidy

_OVERLAP = 0.5  # of the smaller height: with less overlap, text is on different lines
_QUARTER = math.pi / 2


def runs_by_turn(characters: Characters, rules: Rules) -> dict[int, list[Run]]:
    """The runs for each direction, in quarter turns counterclockwise, turned so that all read to the right.

    No run crosses an upright rule.
    """
    boxes = characters.boxes()
    text = characters.text
    visible = np.array([index for index, character in enumerate(text) if not character.isspace()], np.int64)
    turns = _turns(characters, visible, boxes[visible])
    runs: dict[int, list[Run]] = {}
    for turn in np.unique(turns).tolist():
        indices = visible[turns == turn]
        runs[turn] = list(_runs(text, indices, _turned(boxes[indices], turn), rules.turned(turn)[1]))
    return runs


def _turns(characters: Characters, visible: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """int64 [visible]: the direction of each visible character. PDFium is asked only about characters that do
    not follow the previous one to the right.
    """
    left, high, right, low = boxes.T
    middle = (high + low) / 2
    follows = np.zeros(len(visible), bool)
    reach = right[:-1] - 0.3 * (high - low)[1:]
    follows[1:] = (reach <= left[1:]) & (low[1:] < middle[:-1]) & (middle[:-1] < high[1:])
    asked = np.flatnonzero(~follows)
    found = [round(-characters.angle(int(index)) / _QUARTER) % 4 for index in visible[asked]]
    lengths = np.diff(np.append(asked, len(visible)))
    return np.repeat(np.array(found, np.int64), lengths)


def _turned(boxes: np.ndarray, turn: int) -> np.ndarray:
    """float64 [characters, 4]: left, low, right, high in the direction of the text."""
    left, high, right, low = boxes.astype(np.float64).T
    return np.stack(turned_box((left, low, right, high), turn), axis=1)


def _runs(text: str, indices: np.ndarray, boxes: np.ndarray, upright: list[Rule]) -> Iterator[Run]:
    left, low, right, high = boxes.T
    height = np.maximum(high - low, 1e-3)
    smaller = np.minimum(height[1:], height[:-1])
    shared = np.minimum(high[1:], high[:-1]) - np.maximum(low[1:], low[:-1])
    gap = left[1:] - right[:-1]
    letters = [text[index] for index in indices.tolist()]
    least = np.array([GAP if letter in STOPS else NARROW_GAP for letter in letters[:-1]])
    width = np.minimum((right - left)[1:], (right - left)[:-1])
    apart = (gap > least * smaller) & ((gap > SPACE * width) | (gap > GAP * smaller))
    broken = (shared < _OVERLAP * smaller) | apart | (gap < -GAP * smaller)
    between = ((a, b) for a, b in zip(indices.tolist(), indices[1:].tolist(), strict=False))
    broken |= np.array(
        [text[a] == HYPHEN_MARK or (b - a > 1 and "\n" in text[a:b]) for a, b in between], dtype=bool
    )
    middle = (low + high) / 2
    for rule in upright:
        passed = (right[:-1] < rule.at + 1) & (left[1:] > rule.at - 1) & (gap > 0)
        broken |= passed & (middle[:-1] > rule.start) & (middle[:-1] < rule.end)
    starts = [0, *(np.flatnonzero(broken) + 1).tolist(), len(indices)]
    for start, end in itertools.pairwise(starts):
        if start == end:
            continue
        span = text[indices[start] : indices[end - 1] + 1]
        largest = start + int(np.argmax(height[start:end]))
        yield Run(
            tidy(span),
            float(left[start:end].min()),
            float(low[largest]),
            float(right[start:end].max()),
            float(high[largest]),
            int(indices[start]),
        )
