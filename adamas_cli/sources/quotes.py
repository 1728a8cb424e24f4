"""Quotations in an answer, each looked up word for word in the text that the model read."""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adamas_cli.prompt.layout import Layout
    from adamas_cli.prompt.linemap import Location
    from adamas_cli.prompt.tokens import Tokenizer

REQUEST = (
    "Support your answer with quotations from the documents: copy each one word for word, on a line of its "
    'own that begins with "> ".'
)
FIELD = "quote"  # JSON field that holds a quotation
FIELD_REQUEST = f"Copy each `{FIELD}` word for word from the documents."
LEAST_WORDS = 3  # in a quotation in quotation marks; fewer are a name or a term
_BLOCK = re.compile(r"^[ \t]*>[ \t]?(.+(?:\n[ \t]*>[ \t]?.+)*)", re.MULTILINE)
_MARKED = re.compile(r"“([^”]+)”|\"([^\"\n]+)\"|«([^»]+)»|„([^“”]+)[“”]")
_SINGLE, _DOUBLE = "\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f\xab\xbb"
_DASHES = {"\u2013": "-", "\u2014": "--"}
_LETTERS = str.maketrans(dict.fromkeys(_SINGLE, "'") | dict.fromkeys(_DOUBLE, '"') | _DASHES)
_SPACE = re.compile(r"\s+")
_EDGES = " \t\n\"'.,;:!?…*_`()[]"


@dataclass(frozen=True)
class Quote:
    """Words that an answer quotes, and their place; None if they are in no document."""

    text: str
    path: str | None = None
    line: int | None = None
    section: str | None = None

    @property
    def verified(self) -> bool:
        """Whether a document holds the words."""
        return self.path is not None

    def as_json(self) -> dict[str, object]:
        """The quotation as JSON."""
        record: dict[str, object] = {"text": self.text, "verified": self.verified}
        if self.verified:
            record |= {"path": self.path, "line": self.line}
        return record if self.section is None else record | {"section": self.section}


def quotations(answer: str) -> list[str]:
    """The quotations in an answer: lines after `>`, and at least LEAST_WORDS words in quotation marks."""
    blocks = [re.sub(r"\n[ \t]*>[ \t]?", "\n", match[1]) for match in _BLOCK.finditer(answer)]
    rest = _BLOCK.sub("", answer)
    marked = (next(filter(None, match.groups())) for match in _MARKED.finditer(rest))
    return _cleaned(blocks + [text for text in marked if len(text.split()) >= LEAST_WORDS])


def quoted_fields(answer: str) -> list[str]:
    """The quotations in a JSON answer: the texts in every FIELD, at any depth; empty for incomplete JSON."""
    try:
        return _cleaned(_fields(json.loads(answer)))
    except ValueError:
        return []


def _fields(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _fields(one)
    elif isinstance(value, dict):
        for name, held in value.items():
            if name == FIELD:
                yield from (
                    text for text in (held if isinstance(held, list) else [held]) if isinstance(text, str)
                )
            yield from _fields(held)


def _cleaned(found: Iterable[str]) -> list[str]:
    cleaned = (" ".join(text.split()).strip(_EDGES) for text in found)
    return list(dict.fromkeys(text for text in cleaned if text))


def check(quotes: Sequence[str], layout: Layout, ids: np.ndarray, tokenizer: Tokenizer) -> list[Quote]:
    """Each quotation of an answer, with its place in the tokens int [n] that were read.

    The amount of white space, capitals, and the forms of quotation marks and dashes do not matter; every word
    does.
    """
    if not quotes:
        return []
    text = _Text(ids, layout, tokenizer)
    return [text.find(quote) for quote in quotes]


class _Text:
    """The text that was read, as one normalized string with the first token of each piece."""

    def __init__(self, ids: np.ndarray, layout: Layout, tokenizer: Tokenizer) -> None:
        self._layout = layout
        self._starts: list[int] = []
        self._tokens: list[int] = []
        pieces: list[str] = []
        length = 0
        for token, piece in _pieces(ids, tokenizer):
            normalized = normalize(piece)
            if pieces and pieces[-1].endswith(" "):
                normalized = normalized.removeprefix(" ")
            if not normalized:
                continue
            self._starts.append(length)
            self._tokens.append(token)
            pieces.append(normalized)
            length += len(normalized)
        self._text = "".join(pieces)

    def find(self, quote: str) -> Quote:
        """The place of a quotation."""
        wanted = normalize(quote).strip()
        at = self._text.find(wanted) if wanted else -1
        while at >= 0:
            place = self._place(at)
            if place is not None:
                return Quote(quote, place.path, place.line, place.section)
            at = self._text.find(wanted, at + 1)
        return Quote(quote)

    def _place(self, at: int) -> Location | None:
        return self._layout.locate(self._tokens[bisect_right(self._starts, at) - 1])


def normalize(text: str) -> str:
    """Text in lower case, with single spaces, and with plain quotation marks and dashes."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).translate(_LETTERS).casefold())


def _pieces(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """Pieces of whole characters, each with the first token that it comes from."""
    decoder = tokenizer.decoder()
    first: int | None = None
    for index, token in enumerate(ids.tolist()):
        first = index if first is None else first
        text = decoder.feed(token)
        if text:
            yield first, text
            first = None
