"""Counting, fitting and truncating the prompt, with a tokenizer of one token per byte."""

from __future__ import annotations

import numpy as np
import pytest
from told import raises_told

from adamas_cli.documents import Part
from adamas_cli.errors import OverContextError
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.linemap import Location
from adamas_cli.prompt.template import Frame

FRAME = Frame("[head]", "[middle]", "[tail]")


class Bytes:
    """The interface of Tokenizer, with bytes as tokens."""

    def encode(self, text: str, *, begins: bool = False) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def begins(self, before: str) -> bool:
        return False

    encode_template = encode

    def stream(self, pieces):
        for piece in pieces:
            yield self.encode(piece)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


class Text:
    def __init__(self, path: str, *pieces: str) -> None:
        self.path, self._pieces = path, pieces

    def parts(self):
        yield from map(Part, self._pieces)


def lay_out(limit: int, *documents: Text) -> Layout:
    layout = Layout(Bytes(), FRAME, limit)
    for document in documents:
        layout.add(document)
    return layout


def text_of(ids: np.ndarray) -> str:
    return bytes(ids.tolist()).decode()


def test_everything_is_there_in_order_and_counted():
    layout = lay_out(10_000, Text("a.txt", "one\n", "two\n"), Text("b.txt", "three"))
    first, second = '<document path="a.txt">\none\ntwo\n', '<document path="b.txt">\nthree'
    expected = f"[head]{first}\n</document>\n{second}\n</document>\n"
    assert text_of(layout.fit(0, 0, 10_000)) == expected
    assert layout.total == len(expected)
    assert [d.path for d in layout.documents] == ["a.txt", "b.txt"]
    assert sum(d.tokens for d in layout.documents) == layout.total - len("[head]")
    assert text_of(question_ids(Bytes(), FRAME, "why?")) == "[middle]why?[tail]"


def test_it_fits_exactly_or_not_at_all():
    layout = lay_out(1000, Text("a", "x" * 100))
    assert len(layout.fit(20, 30, layout.total + 50)) == layout.total
    with pytest.raises(OverContextError) as error:
        layout.fit(20, 30, layout.total + 49)
    total = layout.total
    assert f"document {total} + question 20 + answer 30 tokens > context {total + 49}" in error.value.message
    assert error.value.details["n_prompt_tokens"] == total + 20
    assert error.value.details["n_ctx"] == total + 49
    assert error.value.details["largest"] == []  # it is the only one
    assert "largest" not in error.value.message


def test_a_refusal_names_the_largest_documents():
    documents = [Text(f"{size}.txt", "x" * size) for size in (10, 4000, 20, 300, 300_000, 50, 1)]
    layout = lay_out(1000, *documents)
    for refused in (lambda: layout.fit(20, 30, 100), lambda: layout.keep_budget(20, 100)):
        with pytest.raises(OverContextError) as error:
            refused()
        largest = error.value.details["largest"]
        paths = ["300000.txt", "4000.txt", "300.txt", "50.txt", "20.txt"]
        assert [entry["path"] for entry in largest] == paths
        around = len('<document path="300.txt">\n\n</document>\n')
        assert largest[2]["tokens"] == 300 + around
        line = error.value.message.splitlines()[1]
        assert line.startswith("The largest of 7 documents: 300000.txt 300,0")
        assert line.endswith(
            f", 300.txt {300 + around:,}, 50.txt {50 + around - 1:,}, 20.txt {20 + around - 1:,}"
        )


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("context", [120, 121, 500])
def test_truncation_keeps_head_and_tail_and_says_what_it_dropped(block, context):
    body = "".join(f"line {n}\n" for n in range(400))
    pieces = [body[n : n + block] for n in range(0, len(body), block)]
    layout = lay_out(context, Text("a.txt", *pieces))
    whole = text_of(lay_out(10**6, Text("a.txt", body)).fit(0, 0, 10**6))
    text = text_of(layout.fit(20, 30, context, truncate=True))
    assert len(text) == context - 50
    head, rest = text.split("\n[", 1)
    tail = rest.split("tokens left out]\n")[1]
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert layout.dropped == len(whole) - len(head) - len(tail)
    assert abs(len(head) - len(tail)) <= 1


def test_truncation_to_nothing_is_refused():
    layout = lay_out(100, Text("a.txt", "x" * 500))
    with raises_told(OverContextError, match=r"Nothing of the document is left: lower -n"):
        layout.fit(50, 40, 100, truncate=True)


def test_every_token_knows_its_document_and_line_also_behind_a_gap():
    body = "".join(f"{n}\n" for n in range(1000))
    layout = lay_out(300, Text("a.txt", body), Text("b.txt", "last\nwords"))
    text = text_of(layout.fit(0, 0, 300, truncate=True))
    for needle, line in [("\n5\n", 6), ("\n998\n", 999), ("last", 1), ("words", 2)]:
        at = text.index(needle) + needle.startswith("\n")
        location = layout.locate(at)
        assert location is not None
        assert location.path == ("a.txt" if "\n" in needle else "b.txt")
        assert location.line == line
    assert layout.locate(0) is None
    assert layout.locate(text.index("tokens left out")) is None


def test_memory_is_bounded_by_the_limit():
    layout = Layout(Bytes(), FRAME, 1000)
    layout.add(Text("a", *["y" * 5000] * 200))
    assert layout.total > 10**6
    kept = sum(part.nbytes for part in [*layout._ends._head, *layout._ends._tail])
    assert kept <= 4 * (1000 + 1000 + 5000)


def test_a_token_knows_its_section():
    class Book(Text):
        def parts(self):
            yield Part("[page 1]\n</document>\n", "page 1")
            yield Part("still the first\n")
            yield Part("[page 3]\nthe third\n", "page 3")

    layout = lay_out(10_000, Text("a.txt", "before\n"), Book("book.pdf"), Text("z.txt", "after"))
    text = text_of(layout.fit(0, 0, 10_000))
    found = {
        word: layout.locate(text.index(word))
        for word in ("before", "[page 1", "still", "[page 3", "the third", "after")
    }
    assert found == {
        "before": Location("a.txt", 1),
        "[page 1": Location("book.pdf", 1, "page 1"),
        "still": Location("book.pdf", 3, "page 1"),
        "[page 3": Location("book.pdf", 4, "page 3"),
        "the third": Location("book.pdf", 5, "page 3"),
        "after": Location("z.txt", 1),
    }
