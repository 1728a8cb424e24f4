"""Rejoins words that are broken at line ends, where that is certain to be right."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from importlib.resources import files

from adamas_cli.documents.formats.pdf.characters import HYPHEN_MARK

_TABLE = "| "  # lines of tables begin with it
_SOFT = "\u00ad"  # occurs only where a word may be broken
_HYPHENS = ("-", "\u2010", HYPHEN_MARK, _SOFT)
_WORD = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
_LAST_LETTERS = re.compile(r"[^\W\d_]+$")
_FIRST_LETTERS = re.compile(r"[^\W\d_]+")
_ADDRESS = re.compile(r"[/@\\_=<>~#]|::|www\.|^-|\w\.\w|\(\)|\w:\w")  # URLs, mail, paths, flags, code
_STOP_WORDS = {
    "en": "the of and to in is that for it with as was on be by",
    "de": "der die und das nicht ist von zu den mit ein auf für im dem",
    "fr": "le la les des et est une dans que pour qui du sur au pas",
    "es": "el los las que una por con para del se como más pero su es",
    "it": "il di che la per non una della con sono del gli nel alla come",
    "pt": "que não uma para com os dos do da em por mais como foi ao",
    "nl": "het een van en dat niet zijn op voor met als maar ook aan bij",
}


class Vocabulary:
    """The words inside a document's lines, used to judge those broken at line ends."""

    def __init__(self) -> None:
        self._words: Counter[str] = Counter()

    def add(self, lines: Iterable[str]) -> None:
        """Add the words of consecutive lines, except parts of broken ones."""
        broken = False
        for line in lines:
            whole = line.split(None, 1)[-1] if broken and " " in line else ("" if broken else line)
            broken = line.endswith(_HYPHENS)
            if broken:
                whole = whole.rpartition(" ")[0]
            self._words.update(match.lower() for match in _WORD.findall(whole))

    def text(self, lines: Sequence[str]) -> str:
        """The lines as text; broken words are joined, with or without their hyphens."""
        written: list[str] = []
        open_word = False
        for line in lines:
            if open_word and not line.startswith(_TABLE):
                before = written.pop()
                first = line.split(None, 1)[0] if line else ""
                last = before.split()[-1] if before.split() else ""
                kept = before[:-1] + ("" if self._is_one_word(last, first) else _hyphen(before[-1]))
                line = kept + line
            open_word = _is_broken(line)
            written.append(line)
        return "\n".join(map(_inside, written))

    def _is_one_word(self, last: str, first: str) -> bool:
        """Whether `last`, which ends with a hyphen, and `first` form one word without the hyphen."""
        if last.endswith(_SOFT):
            return True
        left, right = _LAST_LETTERS.search(last[:-1]), _FIRST_LETTERS.match(first)
        if (
            left is None
            or right is None
            or not right[0].islower()
            or not left[0][1:].islower() * (len(left[0]) > 1)
        ):
            return False
        if _ADDRESS.search(last) or _ADDRESS.search(first.rstrip(".,;:)")):
            return False
        if len(right[0]) < len(first) and (first[len(right[0])].isdigit() or first[len(right[0])] in "-_"):
            return False
        a, b = left[0].lower(), right[0]
        if self._words[f"{a}-{b}"]:
            return False
        return bool(self._words[a + b]) or a + b in _dictionary(self._language())

    def _language(self) -> str:
        found = {
            language: sum(self._words[word] for word in words.split())
            for language, words in _STOP_WORDS.items()
        }
        return max(found, key=lambda language: found[language])


@cache
def _dictionary(language: str) -> Collection[str]:
    """pyspellchecker's words of a language, without the variants that it derives for its suggestions."""
    packed = files("spellchecker").joinpath("resources", f"{language}.json.gz").read_bytes()
    words: dict[str, int] = json.loads(gzip.decompress(packed))
    return words.keys()


def _is_broken(line: str) -> bool:
    """Whether the last word continues in the next line: a dash on its own does not break a word."""
    return line.endswith(_HYPHENS) and line[-2:-1].isalnum()


def _hyphen(character: str) -> str:
    return "-" if character in (HYPHEN_MARK, _SOFT) else character


def _inside(line: str) -> str:
    return line.replace(_SOFT, "").replace(HYPHEN_MARK, "-")
