"""Where an answer came from: what is counted, the resulting passages, and which quotations are true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adamas_kernels.contract import SparseSettings
from conftest import byte_tokenizer, tiny_architecture
from test_cli import Runner, adamas  # noqa: F401 - a fixture
from test_engine import FULL, Loaded, answer, prompt, sparse
from test_native import pack  # noqa: F401 - a fixture

from adamas_cli.commands.options import with_defaults
from adamas_cli.documents.parts import Part
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.timeline import Timeline
from adamas_cli.prompt.layout import Layout
from adamas_cli.prompt.template import Frame
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.sources.passages import LONGEST_PASSAGE, Sources, find_sources
from adamas_cli.sources.quotes import check, quotations
from adamas_cli.terminal.origins import HEIGHTS, heat_strip, passage_lines, quote_lines

BUDGET, ANSWER = 24, 12

TEXT = """The first line is about nothing.
The second one names a harbour.
Then comes a long silence,
and somebody counts the boats.

A last line “ends” the page -- at last.
"""


class Text:
    path = "notes.txt"

    def __init__(self, text: str = TEXT) -> None:
        self.text, self.size = text, len(text)

    def parts(self):
        yield Part(self.text, None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return Tokenizer.from_directory(folder)


@pytest.fixture
def laid_out(tokenizer: Tokenizer) -> tuple[Layout, np.ndarray]:
    layout = Layout(tokenizer, Frame("before ", " asked: ", " answer:"))
    for document in (Text(), Text("Another text about harbours.\n")):
        layout.add(document)
    return layout, layout.fit(0, 0, layout.total)


def weights_on(layout: Layout, ids: np.ndarray, tokenizer: Tokenizer, **words: float) -> np.ndarray:
    """Puts weight on the tokens of each word's first occurrence."""
    text = b"".join(tokenizer.token_bytes(int(token)) for token in ids)
    weights = np.zeros(len(ids))
    for word, weight in words.items():
        at = text.index(word.encode())
        weights[at : at + len(word)] = weight / len(word)
    return weights


# --- Counting.


def counted(loaded: Loaded, settings: AttentionSettings, **options) -> tuple[list[int], np.ndarray | None]:
    timeline = Timeline(loaded, settings, context=400, prefill_chunk=64, counts=True, **options)
    ids = prompt(300)
    tokens = answer(timeline, ids[:280], ids[280:], tokens=ANSWER)
    return tokens, timeline.attended()


def test_full_attention_counts_nothing():
    _, weights = counted(Loaded(tiny_architecture("llama")), FULL)
    assert weights is None


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
def test_what_is_counted_is_softmax_weight_of_the_document(name):
    model = tiny_architecture(name)
    settings = AttentionSettings("adamas", SparseSettings(budget=BUDGET), dense_layers=1, backend="torch")
    timeline = Timeline(Loaded(model), settings, context=400, prefill_chunk=64, counts=True)
    ids = prompt(300)
    steps = len(answer(timeline, ids[:280], ids[280:], tokens=ANSWER)) - 1
    weights = timeline.attended()
    assert weights is not None
    assert timeline.cache.tally is not None
    kinds = getattr(model.config, "layer_types", ["full_attention"] * 4)
    queries = model.config.num_attention_heads * sum(kind == "full_attention" for kind in kinds[1:]) * steps
    assert timeline.cache.tally.counts[0, 0].sum() == queries * BUDGET
    assert len(weights) == 280
    assert (weights >= 0).all()
    assert 0 < weights.sum() < queries


def test_counting_does_not_change_the_answer():
    loaded, ids = Loaded(tiny_architecture("llama")), prompt(300)
    timeline = Timeline(loaded, sparse(BUDGET), context=400, prefill_chunk=64)
    assert timeline.attended() is None
    assert counted(loaded, sparse(BUDGET))[0] == answer(timeline, ids[:280], ids[280:], tokens=ANSWER)


def test_every_answer_is_counted_anew():
    timeline = Timeline(
        Loaded(tiny_architecture("llama")), sparse(BUDGET), context=300, prefill_chunk=64, counts=True
    )
    ids = prompt(300)
    first = answer(timeline, ids[:280], ids[280:], tokens=ANSWER), timeline.attended()
    answer(timeline, ids[:0], ids[100:130], tokens=ANSWER)  # also exceeds the reserved room
    again = answer(timeline, ids[:0], ids[280:], tokens=ANSWER), timeline.attended()
    assert first[0] == again[0]
    np.testing.assert_allclose(again[1], first[1], rtol=1e-5, atol=1e-6)


def test_compiled_steps_count_as_launched_ones_do(plain_numbers, pack):  # noqa: F811
    packed, plain = pack(tiny_architecture("llama").requires_grad_(False))
    found, expected = (counted(Loaded(model), sparse(BUDGET)) for model in (packed, plain))
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [BUDGET, 200])
def test_graphs_count_as_launches_do(budget):
    loaded = Loaded(tiny_architecture("llama").to("cuda"))
    found, expected = (counted(loaded, sparse(budget), graphs=graphs) for graphs in (True, False))
    on_cpu = counted(Loaded(tiny_architecture("llama")), sparse(budget))
    assert found[0] == expected[0] == on_cpu[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], on_cpu[1], rtol=1e-3, atol=1e-3)


# --- Passages.


def test_passages_are_the_lines_that_were_attended_to(laid_out, tokenizer):
    layout, ids = laid_out
    weights = weights_on(layout, ids, tokenizer, harbour=6.0, boats=3.0, Another=1.0)
    weights[:5] = 50  # text around the documents does not count
    found = find_sources(weights, layout.locate, ids, tokenizer, 3).passages
    assert [(x.path, x.first_line, x.last_line, round(x.share, 3)) for x in found] == [
        ("notes.txt", 2, 2, 0.6),
        ("notes.txt", 4, 4, 0.3),
        ("notes.txt", 1, 1, 0.1),
    ]
    assert found[0].excerpt == "The second one names a harbour."
    assert found[2].excerpt == "Another text about harbours."


def test_a_passage_takes_in_neighbours_but_never_another_document(tokenizer):
    layout = Layout(tokenizer, Frame("", "", ""))
    lines = [f"line number {number}\n" for number in range(30)]
    for _ in range(2):
        layout.add(Text("".join(lines)))
    ids = layout.fit(0, 0, layout.total)
    found = find_sources(np.ones(len(ids)), layout.locate, ids, tokenizer, 50).passages
    assert all(x.last_line - x.first_line < LONGEST_PASSAGE for x in found)
    assert sum(x.last_line - x.first_line + 1 for x in found) == 60
    assert sum(x.share for x in found) == pytest.approx(1)


def test_long_lines_are_cut_to_an_excerpt_around_what_was_attended_to(tokenizer):
    layout = Layout(tokenizer, Frame("", "", ""))
    layout.add(Text("word " * 400 + "needle " + "word " * 400))
    ids = layout.fit(0, 0, layout.total)
    (passage,) = find_sources(
        weights_on(layout, ids, tokenizer, needle=1.0), layout.locate, ids, tokenizer, 5
    ).passages
    assert "needle" in passage.excerpt
    assert passage.excerpt.startswith("… ")
    assert passage.excerpt.endswith(" …")
    assert len(passage.excerpt) < 200


def test_without_attention_there_are_no_passages(laid_out, tokenizer):
    layout, ids = laid_out
    assert find_sources(np.zeros(len(ids)), layout.locate, ids, tokenizer, 3) == Sources((), ())


def test_the_strip_shows_where_in_the_documents(laid_out, tokenizer):
    layout, ids = laid_out
    sources = find_sources(weights_on(layout, ids, tokenizer, harbours=1.0), layout.locate, ids, tokenizer, 3)
    assert max(sources.strip) == 1
    assert sources.strip.index(1.0) > len(sources.strip) * 0.8
    bars = heat_strip(sources, 40).plain
    assert len(bars) <= 40
    assert bars.rstrip("▏").rstrip(HEIGHTS[0]).endswith(HEIGHTS[-1])


def test_passages_fit_a_narrow_terminal(laid_out, tokenizer):
    layout, ids = laid_out
    passages = find_sources(
        weights_on(layout, ids, tokenizer, boats=1.0), layout.locate, ids, tokenizer, 3
    ).passages
    wide, narrow = passage_lines(passages, 120), passage_lines(passages, 40)
    assert wide[1] == " 100%  notes.txt:4  and somebody counts the boats."
    assert narrow[1:] == [" 100%  notes.txt:4", "       and somebody counts the boats."]
    assert all(len(line) <= 40 for line in narrow[1:])
    assert "not evidence" in wide[0]


# --- Quotations.


def test_quotations_are_lines_behind_a_mark_and_longer_words_in_quotation_marks():
    said = 'He says "yes" and “three whole words”.\n> A block\n> of two lines.\nEnd "and not this'
    assert quotations(said) == ["A block of two lines", "three whole words"]


def test_quotations_are_looked_up_word_for_word(laid_out, tokenizer):
    layout, ids = laid_out
    said = (
        '"THE SECOND  one names a harbour" “a last line "ends" the page — at last”\n> Then comes a long\n'
        '> silence, and somebody\n\n"the second names a harbour" "cond one names a"'
    )
    found = {quote.text: quote for quote in check(quotations(said), layout, ids, tokenizer)}
    assert {text: quote.line for text, quote in found.items() if quote.verified} == {
        "Then comes a long silence, and somebody": 3,
        "THE SECOND one names a harbour": 2,
        "cond one names a": 2,
        'a last line "ends" the page — at last': 6,
    }
    assert [text for text, quote in found.items() if not quote.verified] == ["the second names a harbour"]
    assert quote_lines([found["the second names a harbour"]]) == [
        '✗ not in the documents: "the second names a harbour"'
    ]


def test_what_stands_between_documents_is_no_quotation(laid_out, tokenizer):
    layout, ids = laid_out
    (quote,) = check(["document path= notes.txt"], layout, ids, tokenizer)
    (wrapper,) = check(quotations("> <document path="), layout, ids, tokenizer)
    assert not quote.verified
    assert not wrapper.verified


# --- The command.


def test_sources_are_in_json_and_on_stderr(adamas: Runner, tiny_model: Path, tmp_path: Path):  # noqa: F811
    file = tmp_path / "book.txt"
    file.write_text(TEXT * 4, encoding="utf-8")
    asked = ("ask", file, "what is it?", "-m", tiny_model, "-n", "8")
    done = adamas(*asked, "--sources", "2", "--cite", "--json", "--budget", "32")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["attention"]["kind"] == "adamas"
    assert 1 <= len(record["sources"]) <= 2
    source = record["sources"][0]
    assert source["path"].endswith("book.txt")
    assert 1 <= source["first_line"] <= source["last_line"] <= 24
    assert source["excerpt"] in " ".join((TEXT * 4).split()) or "…" in source["excerpt"]
    assert record["quotes"] == []
    shown = adamas(*asked, "--sources")
    assert shown.returncode == 0, shown.stderr
    assert b"not evidence" in shown.stderr
    assert b"book.txt:" in shown.stderr
    assert b"book.txt:" not in shown.stdout
    plain = json.loads(adamas(*asked, "--json").stdout)
    assert "sources" not in plain
    assert "quotes" not in plain


def test_full_attention_has_no_sources(adamas: Runner, tiny_model: Path, tmp_path: Path):  # noqa: F811
    (tmp_path / "a.txt").write_text("a text", encoding="utf-8")
    done = adamas("ask", tmp_path / "a.txt", "what?", "-m", tiny_model, "--sources", "--attn", "full")
    assert done.returncode == 2
    assert b"leave out --attn full" in done.stderr


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["ask", "a", "--sources", "why?"], ["ask", "a", "--sources", "3", "why?"]),
        (["ask", "a", "why?", "--sources"], ["ask", "a", "why?", "--sources", "3"]),
        (["ask", "--sources", "5", "a", "b"], ["ask", "--sources", "5", "a", "b"]),
        (["ask", "--sources=5", "a"], ["ask", "--sources=5", "a"]),
        (["ask", "--", "--sources"], ["ask", "--", "--sources"]),
    ],
)
def test_the_number_of_sources_may_be_left_out(given, meant):
    assert with_defaults(given) == meant


def test_the_next_answer_does_not_change_what_was_counted_before():
    timeline = Timeline(
        Loaded(tiny_architecture("llama")), sparse(BUDGET), context=300, prefill_chunk=64, counts=True
    )
    ids = prompt(200)
    answer(timeline, ids[:180], ids[180:], tokens=4)
    weights = timeline.attended()
    assert weights is not None
    before = weights.copy()
    assert timeline.cache.tally is not None
    timeline.cache.tally.counts.zero_()
    assert torch.equal(torch.from_numpy(weights), torch.from_numpy(before))
