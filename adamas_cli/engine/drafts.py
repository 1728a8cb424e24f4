"""Drafts of an answer's next tokens, looked up in its document and its own text: answers about a text repeat
it. One pass of the model checks several tokens, so correct ones cost a fraction of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
from adamas_kernels.contract import LARGEST_STEP

ORDER = 3  # last tokens that a place must share with the end of the text
PLACES = 16  # places compared, the latest ones
COMPARED = 32  # tokens compared before each place
SIZES = (4, 8, LARGEST_STEP)  # tokens of passes that check drafts
# Seconds of such a pass over those of one token, until an answer has measured them (docs/performance.md).
COSTS: Mapping[int, float] = {4: 1.6, 8: 2.8, 16: 5.2}
# The same on a GPU, where passes differ more between models: those of a 1.5B after 8,000 tokens.
GPU_COSTS: Mapping[int, float] = {4: 2.0, 8: 2.0, 16: 2.4}
CAPTURE = 0.1  # seconds that a GPU's first pass of a size takes at least, as it is captured then
# An answer that leaves the text is sought again up to NEAR tokens on from there, for TRIES of its own tokens:
# a line break and the next word are one token in an answer that does not break lines.
NEAR, TRIES = 2, 3
LEAST_GAIN = 1.1  # expected tokens per step's time; no draft below this
# By tokens shared with the end of the text (at least): how often the next token is the same, before this
# answer has measured it.
EXPECTED = ((3, 0.45), (4, 0.55), (6, 0.7), (9, 0.82), (16, 0.92))
WEIGHT = 6.0  # of that, in tokens; an answer's own observations fade with each further token
FADING = 0.97


class TextIndex:
    """Token ids that grow at the end, with the earlier places of each run of ORDER tokens.

    Twelve bytes a token, up to twice that; appending takes constant time.
    """

    def __init__(self, ids: np.ndarray) -> None:
        """ids: int [n]."""
        self._length = len(ids)
        room = 2 * len(ids) + 64
        self._ids = np.zeros(room, np.int32)
        self._ids[: len(ids)] = ids
        self._table = np.full(1 << int(room - 1).bit_length(), -1, np.int32)  # the last place of each hash
        self._before = np.full(room, -1, np.int32)  # for each place, the previous one with its hash
        if len(ids) < ORDER:
            return
        hashes = self._hashes(np.arange(ORDER - 1, len(ids)))
        places = np.argsort(hashes, kind="stable").astype(np.int32) + ORDER - 1
        alike = hashes[places[1:] - ORDER + 1] == hashes[places[:-1] - ORDER + 1]
        self._before[places[1:][alike]] = places[:-1][alike]
        self._table[hashes] = np.arange(ORDER - 1, len(ids))  # the last of several wins

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> int:
        return int(self._ids[place])

    def behind(self, place: int, count: int) -> list[int]:
        """This many tokens from a place on; past the end of the text they repeat from that place."""
        known = self._ids[place : min(place + count, self._length)].tolist()
        return [known[at % len(known)] for at in range(count)]

    def append(self, token: int) -> None:
        """Changes: appends a token."""
        if self._length == len(self._ids):
            vars(self).update(vars(TextIndex(self._ids)))
        self._ids[self._length] = token
        self._length += 1
        if self._length >= ORDER:
            place = self._length - 1
            (found,) = self._hashes(np.array([place]))
            self._before[place], self._table[found] = self._table[found], place

    def repeated(self) -> tuple[int, int]:
        """The place after the earlier tokens that share most with the end of the text (of several, the last),
        and how many they share, up to COMPARED; (0, 0) below ORDER.
        """
        end = self._length
        places: list[int] = []
        place = int(self._before[end - 1]) if end >= ORDER else -1
        while place >= 0 and len(places) < PLACES:
            places.append(place)
            place = int(self._before[place])
        if not places:
            return 0, 0
        back = np.arange(min(COMPARED, end))
        earlier = np.array(places)[:, None] - back
        same = (self._ids[np.maximum(earlier, 0)] == self._ids[end - 1 - back]) & (earlier >= 0)
        shared = np.where(same.all(1), len(back), same.argmin(1))
        best = int(shared.argmax())
        return (places[best] + 1, int(shared[best])) if shared[best] >= ORDER else (0, 0)

    def _hashes(self, places: np.ndarray) -> np.ndarray:
        """Hashes of the ORDER tokens that end at each of these places."""
        found = np.zeros(len(places), np.uint64)
        for back in range(ORDER):
            found = (found ^ self._ids[places - back].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        return (found >> np.uint64(32)).astype(np.int64) & (len(self._table) - 1)


class Rates:
    """How often the next token matches that of an earlier place, by how many tokens the place shares.

    Measured with every token of an answer, drafted or not, so drafting starts once it pays.
    """

    def __init__(self) -> None:
        self._hits = [WEIGHT * expected for _, expected in EXPECTED]
        self._all = [WEIGHT for _ in EXPECTED]

    def seen(self, shared: int, *, hit: bool) -> None:
        """Changes: at a place sharing this many tokens, the next token matched or not."""
        at = self._class_of(shared)
        self._hits[at] = FADING * self._hits[at] + hit
        self._all[at] = FADING * self._all[at] + 1

    def accepted(self, shared: int, count: int) -> list[float]:
        """The expected number of accepted tokens of a draft of length 0, 1, up to `count`."""
        sums, chance = [0.0], 1.0
        for more in range(count):
            at = self._class_of(shared + more)
            chance *= self._hits[at] / self._all[at]
            sums.append(sums[-1] + chance)
        return sums

    @staticmethod
    def _class_of(shared: int) -> int:
        return max(at for at, (least, _) in enumerate(EXPECTED) if shared >= least)


class Costs:
    """Seconds of passes by size, over those of one token: the minimum of the last ones of each size, since
    other load on a machine only adds to them.
    """

    def __init__(
        self, expected: Mapping[int, float] = COSTS, setup: Callable[[int], float] = lambda size: 0.0
    ) -> None:
        """expected: before passes are measured. setup: seconds that the next pass of a size takes longer,
        because it needs some set-up; it is not taken before drafts of that size would have saved as much.
        """
        self._expected, self.setup = expected, setup
        self._seconds = {size: deque[float](maxlen=8) for size in (1, *SIZES)}
        self._missed = dict.fromkeys(SIZES, 0.0)  # seconds that passes of sizes not begun would have saved
        self._begun: set[int] = set()

    def took(self, size: int, seconds: float) -> None:
        """Changes: a pass of this many tokens took this long. The first pass of a size is not counted: it
        does set-up work.
        """
        if size in self._begun:
            self._seconds[size].append(seconds)
        self._begun.add(size)

    def of(self, size: int) -> float:
        """The cost of a pass of this many tokens, relative to one token. Where it is not known yet, it is as
        far from the expected one as that of the nearest known size.
        """
        measured = [other for other in SIZES if self._seconds[other]] if self._seconds[1] else []
        if not measured:
            return self._expected[size]
        near = min(measured, key=lambda other: abs(other - size))
        relative = min(self._seconds[near]) / min(self._seconds[1])
        return relative * self._expected[size] / self._expected[near]

    def begun(self, size: int) -> bool:
        """Whether passes of this size need no set-up."""
        return not self.setup(size)

    def begins(self, size: int, saving: float, left: int) -> bool:
        """Whether to take a pass of this size, which may save this part of a step for each token, with this
        many left to say. Changes: notes what was missed if not.
        """
        if self.begun(size):
            return True
        seconds = saving * min(self._seconds[1], default=0.0)
        self._missed[size] += seconds
        return min(self._missed[size], left * seconds) >= self.setup(size)


class Drafter:
    """Proposes an answer's next tokens, as many as are expected to pay. costs: of this model's passes.
    always: propose as many as fit, whether they pay or not.
    """

    def __init__(self, ids: np.ndarray, costs: Costs, *, always: bool = False) -> None:
        """ids: all tokens before the answer, int [n]."""
        self.costs = costs
        self._always = always
        self._text, self._rates = TextIndex(ids), Rates()
        self._place, self._shared = self._text.repeated()
        self._left = 0  # the place where the answer last left the text
        self._tries = 0  # how often it is still sought near there

    def say(self, token: int) -> None:
        """Changes: appends a token of the answer."""
        text = self._text
        text.append(token)
        if self._shared:
            hit = text[self._place] == token
            self._rates.seen(self._shared, hit=hit)
            if not hit:
                self._left, self._tries = self._place, TRIES
            self._place, self._shared = self._place + 1, self._shared + 1 if hit else 0
        elif self._tries:
            self._seek(token)
        if not self._shared:
            self._place, self._shared = text.repeated()

    def _seek(self, token: int) -> None:
        """Changes: goes on in the text where this token is, if that is near where the answer left it."""
        self._tries -= 1
        for place in range(self._left + NEAR, self._left - 1, -1):
            if place < len(self._text) - 1 and self._text[place] == token:
                self._place, self._shared, self._tries = place + 1, ORDER, 0
                return
        self._left += 1

    def propose(self, most: int, left: int) -> list[int]:
        """A draft to check in one pass together with the last token: a pass of one of the SIZES and at most
        `most` tokens. Empty if no draft is expected to pay. left: tokens that may still be said.
        """
        sizes = [size for size in SIZES if size <= min(most, left)]
        if not self._shared or not sizes:
            return []
        if self._always:
            return self._text.behind(self._place, sizes[-1] - 1)
        costs, expected = self.costs, self._rates.accepted(self._shared, sizes[-1] - 1)
        gains = {size: (1 + expected[size - 1]) / costs.of(size) for size in sizes}
        known = max([1.0, *(gains[size] for size in sizes if costs.begun(size))])
        for size in sorted(sizes, key=lambda size: gains[size], reverse=True):
            if gains[size] < LEAST_GAIN:
                break
            if costs.begins(size, 1 / known - 1 / gains[size], left):
                return self._text.behind(self._place, size - 1)
        return []
