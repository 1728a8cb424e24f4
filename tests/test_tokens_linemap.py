"""Every token of a prompt maps back to its document and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_families import build, prose, save

from adamas_cli.prompt.linemap import LineMap, Location
from adamas_cli.prompt.tokens import Tokenizer

PIECES = [b"a", b"b\n", b"\n", b"\n\nc", b"", b"\xe5\xad", b"\x97", b"x\r\n", b"\n \n"]


def ids(*token_ids: int) -> np.ndarray:
    return np.array(token_ids, dtype=np.int32)


def test_by_hand() -> None:
    lines = LineMap(PIECES.__getitem__)
    lines.skip(2)
    lines.begin("one.txt")
    lines.add(ids(0, 1, 0))  # a b\n a
    lines.add(ids(3, 0))  # \n\nc a
    lines.skip(1)
    lines.begin("two.txt", line=10)
    lines.add(ids(2, 2, 0))
    assert [lines.locate(n) for n in range(lines.tokens)] == [
        None,
        None,
        Location("one.txt", 1),
        Location("one.txt", 1),
        Location("one.txt", 2),
        Location("one.txt", 2),
        Location("one.txt", 4),
        None,
        Location("two.txt", 10),
        Location("two.txt", 11),
        Location("two.txt", 12),
    ]
    assert [(span.path, span.start, span.tokens) for span in lines.documents] == [
        ("one.txt", 2, 5),
        ("two.txt", 8, 3),
    ]


def test_empty_documents_and_blocks() -> None:
    lines = LineMap(PIECES.__getitem__)
    lines.begin("empty")
    lines.add(ids())
    lines.begin("next")
    lines.add(ids(0))
    assert lines.locate(0) == Location("next", 1)


@pytest.mark.parametrize("index", [-1, 1])
def test_outside_the_prompt(index: int) -> None:
    lines = LineMap(PIECES.__getitem__)
    lines.skip(1)
    with pytest.raises(IndexError):
        lines.locate(index)


def test_a_document_must_begin() -> None:
    lines = LineMap(PIECES.__getitem__)
    with pytest.raises(ValueError, match="before it began"):
        lines.add(ids(0))
    lines.begin("a")
    lines.skip(0)
    with pytest.raises(ValueError, match="before it began"):
        lines.add(ids(0))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.lists(st.lists(st.integers(0, len(PIECES) - 1), max_size=6), max_size=4)
        ),
        max_size=4,
    )
)
def test_against_counting(layout: list[tuple[int, list[list[int]]]]) -> None:
    lines = LineMap(PIECES.__getitem__)
    want: list[Location | None] = []
    for number, (skipped, document) in enumerate(layout):
        lines.skip(skipped)
        want += [None] * skipped
        lines.begin(str(number))
        line = 1
        for block in document:
            lines.add(ids(*block))
            for token_id in block:
                want.append(Location(str(number), line))
                line += PIECES[token_id].count(b"\n")
    assert [lines.locate(n) for n in range(lines.tokens)] == want


def test_with_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(save(build("qwen2"), tmp_path))
    lines = LineMap(tokenizer.token_bytes)
    lines.begin("topics.txt")
    text = prose()
    for block in tokenizer.stream([text]):
        lines.add(block)
    before = b""
    for index, token_id in enumerate(tokenizer.encode(text[:20_000]).tolist()[:-1]):
        assert lines.locate(index) == Location("topics.txt", 1 + before.count(b"\n"))
        before += tokenizer.token_bytes(token_id)
    assert lines.locate(lines.tokens - 1) == Location("topics.txt", 1 + text[:-1].count("\n"))
