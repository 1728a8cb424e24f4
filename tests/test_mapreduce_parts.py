"""Documents cut into parts, with bytes and with words as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from told import raises_told

from adamas_cli.documents.parts import Part as Section
from adamas_cli.errors import OverContextError
from adamas_cli.longdoc.borders import Border, units
from adamas_cli.longdoc.parts import Excerpt, Measure, Part, cut


class Bytes:
    """The interface of Tokenizer, with bytes as tokens."""

    def encode(self, text: str, *, begins: bool = False) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)


class Words(Bytes):
    """Tokens are whole words and runs of white space, so that a text costs less than its lines."""

    def encode(self, text: str, *, begins: bool = False) -> np.ndarray:
        return np.zeros(len(re.findall(r"\s+|\w+|[^\s\w]", text)), np.int32)


class Chunked:
    """A document that yields its text in pieces of a few characters."""

    def __init__(self, path: str, text: str, size: int) -> None:
        self.path, self._text, self._size = path, text, size

    def parts(self) -> Iterator[Section]:
        for start in range(0, len(self._text), self._size):
            yield Section(self._text[start : start + self._size])


LINES = st.lists(
    st.one_of(
        st.text("ab é</document>", max_size=60),
        st.just(""),
        st.just("CHAPTER IV"),
        st.just("# Top"),
        st.text("x", min_size=300, max_size=900),
    ),
    max_size=60,
)
TEXTS = st.lists(LINES.map("\n".join), min_size=1, max_size=5)
MEASURES = st.sampled_from([Measure(Bytes()), Measure(Words())])


@settings(max_examples=60, deadline=None)
@given(TEXTS, MEASURES, st.integers(250, 900), st.integers(1, 500))
def test_parts_hold_the_text_and_fill_the_room(
    texts: list[str], measure: Measure, room: int, size: int
) -> None:
    documents = [Chunked(f"{n}.md", text, size) for n, text in enumerate(texts)]
    parts = list(cut(documents, measure, room))
    found: dict[str, str] = {}
    for part in parts:
        for passage, text in zip(part.passages, part.texts, strict=True):
            before = found.get(passage.path, "")
            assert passage.first_line == before.count("\n") + 1
            found[passage.path] = before + text
            assert passage.last_line == found[passage.path].removesuffix("\n").count("\n") + 1
            assert passage.whole == (text == texts[int(passage.path[0])])
    assert "".join(found.values()) == "".join(texts)
    for part in parts:
        assert part.tokens == sum(measure.excerpt(e.path, e.text) for e in part.excerpts()) <= room
    for left, right in pairwise(parts):
        assert together(left, right, measure) > room


def together(left: Part, right: Part, measure: Measure) -> int:
    """The token count of two neighbours as one part."""
    pairs = [*zip(left.passages, left.texts, strict=True), *zip(right.passages, right.texts, strict=True)]
    joined: dict[str, str] = {}
    labels: dict[str, str] = {}
    for passage, text in pairs:
        joined[passage.path] = joined.get(passage.path, "") + text
        label = f"{passage.path}:{passage.first_line}-{passage.last_line}"
        labels[passage.path] = passage.path if passage.whole else labels.get(passage.path, label)
    return sum(measure.excerpt(labels[path], text) for path, text in joined.items())


def texts_of(*documents: Excerpt, room: int) -> list[str]:
    return ["".join(part.texts) for part in cut(documents, Measure(Bytes()), room)]


def filler(letter: str, length: int) -> str:
    return f"{letter * 9}\n" * (length // 10)


@pytest.mark.parametrize(
    ("before", "border"),
    [
        (filler("a", 300), "CHAPTER II\n"),
        (filler("a", 300), "\n# A heading\n"),
        (filler("a", 300) + "\n", "A new paragraph.\n"),
    ],
)
def test_a_part_ends_at_the_best_border(before: str, border: str) -> None:
    first, second = texts_of(Excerpt.of("a.md", before + border + filler("b", 300)), room=500)
    assert first == before + ("\n" if border.startswith("\n") else "")
    assert second.startswith(border.lstrip("\n"))


def test_a_file_is_rather_read_whole_than_begun_early() -> None:
    documents = [Excerpt.of("a.txt", filler("a", 320)), Excerpt.of("b.txt", filler("b", 300))]
    first, second = cut(documents, Measure(Bytes()), 500)
    assert [[passage.label for passage in part.passages] for part in (first, second)] == [
        ["a.txt"],
        ["b.txt"],
    ]


def test_a_folder_is_a_better_border_than_a_file() -> None:
    paths = ["x/1", "x/2", "y/3", "y/4"]
    documents = [Excerpt.of(path, filler("a", 150)) for path in paths]
    first, *_ = cut(documents, Measure(Bytes()), 560, folder=lambda path: path[0])
    assert [passage.path for passage in first.passages] == ["x/1", "x/2"]
    first, *_ = cut(documents, Measure(Bytes()), 560)
    assert [passage.path for passage in first.passages] == ["x/1", "x/2", "y/3"]


def test_a_line_without_end_is_cut_hard_and_full() -> None:
    texts = texts_of(Excerpt.of("log", "x" * 5000), room=1000)
    assert "".join(texts) == "x" * 5000
    assert all(len(text) > 900 for text in texts[:-1])
    spaced = texts_of(Excerpt.of("log", "words " * 800), room=1000)
    assert all(text.endswith("words ") for text in spaced)


def test_a_passage_knows_its_lines_and_its_section() -> None:
    text = "CHAPTER I\n" + filler("a", 290) + "Chapter II.\n" + filler("b", 380)
    first, second = cut([Excerpt.of("book.txt", text)], Measure(Bytes()), 480)
    assert first.passages[0].label == "book.txt:1-30"
    assert first.passages[0].section == "CHAPTER I"
    assert second.passages[0].label == "book.txt:31-69"
    assert second.passages[0].section == "Chapter II."


def test_a_pages_label_names_what_begins_on_it() -> None:
    class Pages:
        path = "report.pdf"

        def parts(self) -> Iterator[Section]:
            for page in range(1, 4):
                yield Section(f"Page {page} begins.\n", f"page {page}")
                yield Section(filler("a", 300))

    parts = list(cut([Pages()], Measure(Bytes()), 500))
    assert [part.passages[0].section for part in parts] == ["page 1", "page 2", "page 3"]
    assert [part.texts[0][:13] for part in parts] == [f"Page {page} begins" for page in range(1, 4)]


def test_hash_signs_are_headings_in_markdown_only() -> None:
    text = "import os\n# a comment\nprint()\n"
    assert [unit.border for unit in units([Excerpt.of("a.py", text)], 99)][1] == Border.LINE
    assert [unit.border for unit in units([Excerpt.of("a.md", text)], 99)][1] == Border.CHAPTER


def test_no_more_than_a_part_is_held() -> None:
    read = 0

    class Endless:
        path = "log"

        def parts(self) -> Iterator[Section]:
            nonlocal read
            while True:
                read += 100
                yield Section(f"{'x' * 99}\n")

    parts = cut([Endless()], Measure(Bytes()), 1000)
    for _ in range(50):
        next(parts)
    assert read < 50 * 1000 + 200


def test_room_for_nothing_is_refused() -> None:
    with raises_told(OverContextError, match="Raise --ctx-size or lower -n"):
        list(cut([Excerpt.of("a" * 400, "text\n" * 90)], Measure(Bytes()), 300))
