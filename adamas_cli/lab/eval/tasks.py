"""Tasks made for a text: what is hidden in it, the question, and the strings that a right answer holds.

Like RULER's (arXiv 2404.06654, section 3): one needle, one among many, a chain of variables, and the most
common words of a list. The wording is ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from adamas_cli.errors import UsageError
from adamas_cli.lab.eval.haystack import Haystack, Needle

ADJECTIVES, NOUNS = (
    words.split()
    for words in (
        """amber ancient brass broken copper crooked distant faded frozen gentle golden hidden hollow
        ivory lonely marble narrow painted patient quiet rusty silver sleepy velvet""",
        """anchor basket candle compass cradle feather fiddle fountain harbour kettle ladder lantern
        mirror orchard pebble piano ribbon saddle spindle thimble tunnel violin whistle window""",
    )
)
TOKENS_PER_DISTRACTOR = 256  # so that distractors take about a tenth of the document
HOPS = 4  # RULER, table 5: a chain of four assignments after the first one
COMMON_WORDS, COMMON_TIMES, RARE_TIMES = 10, 30, 3  # RULER, table 5
_WORD = re.compile(r"[^\W\d_]{4,12}")


@dataclass(frozen=True)
class Question:
    """depth: percentage of the document before the answer, None if that is spread over the document.

    expected: the strings that a right answer holds.
    """

    depth: int | None
    text: str
    expected: tuple[str, ...]

    def score(self, answer: str) -> float:
        """The share of the expected strings that the answer holds, ignoring case (RULER, section 4)."""
        said = answer.casefold()
        return sum(one.casefold() in said for one in self.expected) / len(self.expected)


@dataclass(frozen=True)
class Sample:
    """One document, whose length is not fixed yet, and the questions about it.

    build: the text for a size between 0 and `most`; its tokens grow almost in proportion.
    """

    questions: tuple[Question, ...]
    build: Callable[[int], str]
    most: int


@dataclass(frozen=True)
class Task:
    """max_tokens: of an answer. one_depth: one document for each depth. spread: there are no depths."""

    name: str
    max_tokens: int
    draw: Callable[[Random, Haystack, int, Sequence[int]], Sample]
    one_depth: bool = False
    spread: bool = False

    def documents(self, depths: Sequence[int]) -> list[tuple[int | None, ...]]:
        """The depths that are asked for in each document of one sample."""
        if self.spread:
            return [(None,)]
        return [(depth,) for depth in depths] if self.one_depth else [tuple(depths)]

    def sample(
        self, haystack: Haystack, length: int, depths: Sequence[int | None], seed: int, number: int
    ) -> Sample:
        """Sample `number`; deterministic for the same arguments. length: tokens of the prompt."""
        random = Random(f"{seed} {self.name} {length} {list(depths)} {number}")
        return self.draw(random, haystack, length, [depth for depth in depths if depth is not None])


def passkey(random: Random, haystack: Haystack, length: int, depths: Sequence[int]) -> Sample:
    """A number that occurs once in the text, with nothing similar around it."""
    (number,) = _numbers(random, haystack, 1, digits=5)
    needle = Needle(depths[0], f"The pass key of this text is {number}.")
    asked = Question(depths[0], "What is the pass key of this text?", (number,))
    return _hidden(random, haystack, [needle], [asked])


def needles(random: Random, haystack: Haystack, length: int, depths: Sequence[int], others: int) -> Sample:
    """A secret number for a thing at each depth, and `others` more at random depths."""
    pairs = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    count = min(len(depths) + others, len(pairs))
    keys = random.sample(pairs, count)
    numbers = _numbers(random, haystack, count, digits=7)
    places = [*depths, *(random.uniform(0, 100) for _ in range(count - len(depths)))]
    hidden = [
        Needle(place, f"The secret number of the {key} is {number}.")
        for place, key, number in zip(places, keys, numbers, strict=True)
    ]
    asked = [
        Question(depth, f"What is the secret number of the {key}?", (number,))
        for depth, key, number in zip(depths, keys, numbers, strict=False)
    ]
    return _hidden(random, haystack, hidden, asked)


def needle(random: Random, haystack: Haystack, length: int, depths: Sequence[int]) -> Sample:
    """One secret number."""
    return needles(random, haystack, length, depths, others=0)


def multikey(random: Random, haystack: Haystack, length: int, depths: Sequence[int]) -> Sample:
    """The secret numbers of many things, one of which is asked for at each depth."""
    return needles(random, haystack, length, depths, others=max(4, length // TOKENS_PER_DISTRACTOR))


def variables(random: Random, haystack: Haystack, length: int, depths: Sequence[int]) -> Sample:
    """A chain of variables, each set to the previous one, in text order."""
    (number,) = _numbers(random, haystack, 1, digits=5)
    names: list[str] = []
    while len(names) < HOPS + 1:
        name = "".join(random.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=5))
        if name not in names and name.casefold() not in haystack.text.casefold():
            names.append(name)
    places = sorted(random.uniform(0, 100) for _ in names)
    values = [number, *names]
    hidden = [
        Needle(place, f"The variable {name} is set to {value}.")
        for place, name, value in zip(places, names, values, strict=False)
    ]
    text = f"Which variables have the value {number}? Name all {len(names)} of them."
    return _hidden(random, haystack, hidden, [Question(None, text, tuple(names))])


def words(random: Random, haystack: Haystack, length: int, depths: Sequence[int]) -> Sample:
    """A list of the text's words, ten of which occur ten times as often as all others.

    If the document is short, or the text has few words, all occur proportionally less or more often.
    Raises UsageError if that is impossible.
    """
    vocabulary = sorted(set(_WORD.findall(haystack.text.lower())))
    random.shuffle(vocabulary)
    joined = " ".join(vocabulary)
    # A word inside another one would be found in an answer that does not name it.
    distinct = (word for word in vocabulary if joined.count(word) == 1)
    common = [word for word, _ in zip(distinct, range(COMMON_WORDS), strict=False)]
    rare = [word for word in vocabulary if word not in common]
    if len(common) < COMMON_WORDS or not rare:
        raise UsageError(f"`tasks` words: the text has {len(vocabulary)} different words, which are too few")
    slots = int(length / (haystack.count(joined) / len(vocabulary)))
    ratio = COMMON_TIMES // RARE_TIMES
    least = math.ceil(slots / (len(rare) + COMMON_WORDS * ratio))  # with fewer, there are not enough words
    times = max(1, least, min(RARE_TIMES, slots // (2 * COMMON_WORDS * ratio)))
    frequent, most = common * (ratio * times), len(rare) * times
    places = [random.random() for _ in range(len(frequent) + most)]

    def build(size: int) -> str:
        taken = rare[: math.ceil(size / times)]
        chosen = frequent + (taken * times)[:size]
        return " ".join(word for _, word in sorted(zip(places, chosen, strict=False)))

    text = f"Which {COMMON_WORDS} words come most often in the list above? Name all of them."
    return Sample((Question(None, text, tuple(common)),), build, most)


def _hidden(random: Random, haystack: Haystack, hidden: list[Needle], asked: list[Question]) -> Sample:
    start = random.randrange(len(haystack.sentences))
    return Sample(tuple(asked), lambda size: haystack.excerpt(start, size, hidden), most=len(haystack.text))


def _numbers(random: Random, haystack: Haystack, count: int, digits: int) -> list[str]:
    """Distinct numbers of this many digits that do not occur in the text."""
    found: list[str] = []
    while len(found) < count:
        number = str(random.randrange(10 ** (digits - 1), 10**digits))
        if number not in found and number not in haystack.text:
            found.append(number)
    return found


TASKS = {
    task.name: task
    for task in (
        Task("passkey", 32, passkey, one_depth=True),
        Task("needle", 48, needle, one_depth=True),
        Task("multikey", 48, multikey),
        Task("variables", 64, variables, spread=True),
        Task("words", 100, words, spread=True),
    )
}
