"""Compares answers with known ones, as the SQuAD benchmark does (arXiv 1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, known: Sequence[str]) -> float:
    """1 if the normalized answer equals a normalized known one, else 0."""
    return _best(lambda one: float(normalized(answer) == normalized(one)), known)


def word_f1(answer: str, known: Sequence[str]) -> float:
    """The highest F1 of normalized words with a known answer."""
    return _best(lambda one: f1(normalized(answer).split(), normalized(one).split()), known)


def contains(answer: str, known: Sequence[str]) -> float:
    """1 if the answer contains a known answer's words in sequence, else 0: models answer in sentences."""
    return _best(lambda one: float(f" {normalized(one)} " in f" {normalized(answer)} "), known)


def f1(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Harmonic mean of precision and recall of items, with multiplicity; two empty sequences agree."""
    if not found or not wanted:
        return float(not found and not wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def leading(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> int:
    """The number of equal items before the first difference."""
    pairs = zip(found, wanted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))


def _best(score: Callable[[str], float], known: Sequence[str]) -> float:
    return max((score(one) for one in known), default=0.0)
