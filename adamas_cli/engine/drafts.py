"""Drafts of what an answer says next, looked up in its document and in what it has said: answers about a text
repeat it. One pass of the model checks several tokens, so those that were right come at a fraction of a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
from adamas_kernels.contract import LARGEST_STEP

ORDER = 3  # last tokens that a place in the text must share with its end
PLACES = 16  # that share them, which are compared, the last ones
COMPARED = 32  # tokens before each
SIZES = (4, 8, LARGEST_STEP)  # tokens of passes that check drafts
# Seconds of such a pass over those of one token, before an answer has measured them (docs/performance.md).
COSTS: Mapping[int, float] = {4: 1.6, 8: 2.8, 16: 5.2}
LEAST_GAIN = 1.1  # tokens for the time of one, below which there is no draft
# For places that share at least this many tokens with the end of the text: how often the next token is the
# same there, before this answer has shown it.
EXPECTED = ((3, 0.45), (4, 0.55), (6, 0.7), (9, 0.82), (16, 0.92))
WEIGHT = 6.0  # of that, in tokens; those of the answer lose weight with each further one
FADING = 0.97


class TextIndex:
    """Token ids that grow at their end, with where each ORDER of them came before.

    Twelve bytes a token, up to twice as many; a token takes the same time wherever it comes.
    """

    def __init__(self, ids: np.ndarray) -> None:
        """ids: int [n]."""
        self._length = len(ids)
        room = 2 * len(ids) + 64
        self._ids = np.zeros(room, np.int32)
        self._ids[: len(ids)] = ids
        self._table = np.full(1 << int(room - 1).bit_length(), -1, np.int32)  # the last place of each hash
        self._before = np.full(room, -1, np.int32)  # of each place, the last one before it with its hash
        if len(ids) < ORDER:
            return
        hashes = self._hashes(np.arange(ORDER - 1, len(ids)))
        places = np.argsort(hashes, kind="stable").astype(np.int32) + ORDER - 1
        alike = hashes[places[1:] - ORDER + 1] == hashes[places[:-1] - ORDER + 1]
        self._before[places[1:][alike]] = places[:-1][alike]
        self._table[hashes] = np.arange(ORDER - 1, len(ids))  # the last of several is what stays

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> int:
        return int(self._ids[place])

    def behind(self, place: int, count: int) -> list[int]:
        """So many tokens from a place on; where the text ends they begin anew, as circles do."""
        known = self._ids[place : min(place + count, self._length)].tolist()
        return [known[at % len(known)] for at in range(count)]

    def append(self, token: int) -> None:
        """Changes: a token more."""
        if self._length == len(self._ids):
            vars(self).update(vars(TextIndex(self._ids)))
        self._ids[self._length] = token
        self._length += 1
        if self._length >= ORDER:
            place = self._length - 1
            (found,) = self._hashes(np.array([place]))
            self._before[place], self._table[found] = self._table[found], place

    def repeated(self) -> tuple[int, int]:
        """The place after the earlier tokens that share most with the end of the text, of several the last
        one, and how many they share, up to COMPARED; 0 where they are less than ORDER.
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
        """Of the ORDER tokens that end at each of these places."""
        found = np.zeros(len(places), np.uint64)
        for back in range(ORDER):
            found = (found ^ self._ids[places - back].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        return (found >> np.uint64(32)).astype(np.int64) & (len(self._table) - 1)


class Rates:
    """How often the next token is that of an earlier place, by how much the place shares with what was said.

    It is seen with every token of an answer, drafted or not, so drafts begin where they have come to pay.
    """

    def __init__(self) -> None:
        self._hits = [WEIGHT * expected for _, expected in EXPECTED]
        self._all = [WEIGHT for _ in EXPECTED]

    def seen(self, shared: int, *, hit: bool) -> None:
        """Changes: at a place that shared so much, the next token was the same or not."""
        at = self._class_of(shared)
        self._hits[at] = FADING * self._hits[at] + hit
        self._all[at] = FADING * self._all[at] + 1

    def accepted(self, shared: int, count: int) -> list[float]:
        """How many of the first tokens of a draft are expected to be right: of none of them, of one, up to
        `count`.
        """
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
    """Seconds of passes by their tokens, over those of one token; the least of the last ones of each size, as
    what else runs on a machine only adds to them.
    """

    def __init__(self) -> None:
        self._seconds = {size: deque[float](maxlen=8) for size in (1, *SIZES)}
        self._begun: set[int] = set()

    def took(self, size: int, seconds: float) -> None:
        """Changes: a pass of this many tokens took so long. The first one of a size prepares others, and does
        not count.
        """
        if size in self._begun:
            self._seconds[size].append(seconds)
        self._begun.add(size)

    def of(self, size: int) -> float:
        """A pass of this many tokens, over one of one."""
        one, known = self._seconds[1], self._seconds[size]
        return min(known) / min(one) if one and known else COSTS[size]


class Drafter:
    """Proposes what an answer says next, as much of it as is expected to pay. costs: of this model's passes.
    always: propose all that there is room for, whether it pays or not.
    """

    def __init__(self, ids: np.ndarray, costs: Costs, *, always: bool = False) -> None:
        """ids: all tokens before the answer, int [n]."""
        self.costs = costs
        self._always = always
        self._text, self._rates = TextIndex(ids), Rates()
        self._place, self._shared = self._text.repeated()

    def say(self, token: int) -> None:
        """Changes: the answer has one more token."""
        text = self._text
        text.append(token)
        if self._shared:
            hit = text[self._place] == token
            self._rates.seen(self._shared, hit=hit)
            self._place, self._shared = self._place + 1, self._shared + 1 if hit else 0
        if not self._shared:
            self._place, self._shared = text.repeated()

    def propose(self, most: int) -> list[int]:
        """What may come next, to be checked in a pass with the last token, of one of the SIZES and at most
        this many tokens; empty where none is expected to pay.
        """
        sizes = [size for size in SIZES if size <= most]
        if not self._shared or not sizes:
            return []
        expected = self._rates.accepted(self._shared, sizes[-1] - 1)
        gains = [(1 + expected[size - 1]) / self.costs.of(size) for size in sizes]
        best = sizes[-1] if self._always else sizes[int(np.argmax(gains))]
        if not self._always and max(gains) < LEAST_GAIN:
            return []
        return self._text.behind(self._place, best - 1)
