"""`adamas eval retrieval`: what is hidden where, what counts as found, and the command on a tiny model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from adamas_kernels.contract import SparseSettings
from conftest import byte_tokenizer, tiny_architecture
from loaded import Loaded

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Timeline
from adamas_cli.lab.eval.asking import Prompting
from adamas_cli.lab.eval.haystack import Haystack, Needle, fit, sentences
from adamas_cli.lab.eval.ledger import Ledger
from adamas_cli.lab.eval.reading import all_ways
from adamas_cli.lab.eval.retrieval import Design, Retrieval
from adamas_cli.lab.eval.tasks import TASKS, Question
from adamas_cli.prompt.template import frame, load_template
from adamas_cli.prompt.tokens import Tokenizer

BOOK = Path(__file__).parents[1] / "docs" / "examples" / "pride-and-prejudice-1-4.txt"
PROSE = BOOK.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over real prose with a byte tokenizer, so that a token is a character."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    prompting = Prompting(Tokenizer.from_directory(folder), frame(load_template("ask"), byte_tokenizer()))
    haystack = Haystack(PROSE, lambda piece: len(prompting.tokenizer.encode(piece)))
    design = Design(list(TASKS.values()), [2500], [0, 50, 100], 1, 0, all_ways(["dot"], [32], ["dense"]))
    return Retrieval(design, haystack, prompting, "book.txt", {}, "cpu", Ledger(None, resume=False))


def text_of(run, exam):
    """The document as text."""
    decoder = run.prompting.tokenizer.decoder()
    return "".join(map(decoder.feed, exam.document.tolist()))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [2000, 3501])
def test_a_prompt_is_as_long_as_asked_and_repeats(name, length, run):
    depths = TASKS[name].documents([0, 50, 100])[0]
    exam = run.exam(TASKS[name], length, depths, 0)
    longest = max(len(one.ids) for one in exam.asked)
    assert length - 12 <= len(exam.document) + longest <= length
    again = run.exam(TASKS[name], length, depths, 0)
    assert np.array_equal(again.document, exam.document)
    assert again.questions == exam.questions
    other = run.exam(TASKS[name], length, depths, 1)
    assert not np.array_equal(other.document, exam.document)


@pytest.mark.parametrize("name", ["passkey", "needle"])
@pytest.mark.parametrize("depth", [0, 33, 50, 100])
def test_a_needle_stands_once_at_its_depth_between_sentences(name, depth, run):
    exam = run.exam(TASKS[name], 3000, [depth], 0)
    (question,) = exam.questions
    (number,) = question.expected
    text = text_of(run, exam)
    body = text[text.index(">\n") + 2 : text.rindex("\n</document>")]
    assert body.count(number) == 1
    (needle,) = re.findall(rf"The [^.]*? is {number}\.", body)
    before, after = body.split(needle)
    assert question.depth == depth
    share = 100 * len(before) / (len(before) + len(after))
    assert share == pytest.approx(depth, abs=8)  # half of a long sentence
    assert not before or re.search(r"([.!?][\"'_)]*|\n)\s+$", before)


def test_each_key_of_many_has_its_own_number_and_question(run):
    exam = run.exam(TASKS["multikey"], 3500, [0, 50, 100], 0)
    pairs = dict(re.findall(r"The secret number of the (\w+ \w+) is (\d{7})\.", text_of(run, exam)))
    assert len(pairs) == 3 + 3500 // 256
    assert len(set(pairs.values())) == len(pairs)
    assert [one.depth for one in exam.questions] == [0, 50, 100]
    for question in exam.questions:
        (key,) = re.findall(r"of the (.*)\?", question.text)
        assert question.expected == (pairs[key],)


def test_a_chain_of_variables_leads_to_one_number(run):
    exam = run.exam(TASKS["variables"], 3000, [None], 0)
    (question,) = exam.questions
    assigned = dict(re.findall(r"The variable ([A-Z]+) is set to (\w+)\.", text_of(run, exam)))
    (number,) = re.findall(r"\d{5}", question.text)
    assert set(question.expected) == set(assigned)
    assert len(assigned) == 5
    for name in assigned:
        while name in assigned:
            name = assigned[name]
        assert name == number


def test_common_words_come_ten_times_as_often(run):
    exam = run.exam(TASKS["words"], 3500, [None], 0)
    text = text_of(run, exam)
    words = text[text.index(">\n") + 2 : text.rindex("\n</document>")].split()
    (question,) = exam.questions
    counts = {word: words.count(word) for word in words}
    (often,) = {counts[word] for word in question.expected}
    assert {count for word, count in counts.items() if word not in question.expected} <= {
        often // 10,
        often // 10 - 1,  # for the last ones, when the list is full
    }
    assert len(question.expected) == 10
    assert not [word for word in counts for one in question.expected if one in word and one != word]


def test_sentences_are_the_text_and_know_titles():
    text = 'Mr. Bennet made no answer. "Is he?" said Mrs. Long.\n\nChapter 2\n\nNo.'
    found = sentences(text)
    assert "".join(found) == text
    assert found == [
        "Mr. Bennet made no answer. ", '"Is he?" said Mrs. Long.\n\n', "Chapter 2\n\n", "No."
    ]  # fmt: skip


def test_an_excerpt_goes_round_and_ends_in_dots():
    haystack = Haystack("One two. Three four. Five six.", len)
    assert haystack.excerpt(2, 12, [Needle(100, "N.")]) == "Five six.\n\nOne ... N."
    assert haystack.excerpt(0, 20, [Needle(0, "A."), Needle(50, "B.")]) == ("A. One two. B. Three four.")


def test_fitting_by_hand():
    asked = []

    def measure(n):
        asked.append(n)
        return 10 + 3 * n

    assert fit(measure, 1000, 5000) == 330
    assert len(asked) < 8
    assert fit(measure, 9, 5000) is None
    assert fit(measure, 10**6, 50) == 50


def test_the_score_is_the_share_of_what_is_held():
    question = Question(None, "?", ("ABCDE", "FGHIJ", "12"))
    assert question.score("It is abcde, and 123.") == pytest.approx(2 / 3)
    assert question.score("") == 0


def test_where_sparse_attention_begins():
    """With a budget of the whole context all three are the same; with less, all differ."""
    model = tiny_architecture("llama")
    ids = np.random.default_rng(0).integers(0, 256, 340)

    def answered(budget, sparse_from):
        settings = AttentionSettings("adamas", SparseSettings(budget=budget), 0, "torch")
        timeline = Timeline(Loaded(model), settings, context=400)
        for _ in timeline.read(ids[:300]):
            pass
        events = list(timeline.answer(ids[300:], Sampling(), 24, (), sparse_from=sparse_from))
        assert timeline.length == 300
        attended = [event.attended for event in events if isinstance(event, Token)]
        return [event.id for event in events if isinstance(event, Token)], attended

    full, attended = answered(4, "never")
    assert attended == list(range(340, 364))
    assert full == answered(1000, "answer")[0] == answered(1000, "question")[0]
    assert answered(4, "answer")[0][0] == full[0]  # the first token comes from the question's own logits
    assert answered(4, "question")[0] != answered(4, "answer")[0]


def test_the_command_on_a_tiny_model(evaluate, tiny_model, tmp_path, monkeypatch):
    for name in ("multikey", "words"):  # a random model writes as much as it may
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], max_tokens=8))
    out_file = tmp_path / "rows.jsonl"
    some = ["retrieval", "--text", BOOK, "-m", tiny_model, "--len", "1500", "--samples", "1"]
    some += ["--depths", "0,100", "--tasks", "multikey,words", "--question", "dense,sparse"]
    some += ["--budgets", "4k", "--methods", "dot,quest", "--format", "jsonl", "-o", out_file]
    some += ["--dtype", "float32"]
    code, out, err = evaluate(*some)
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert sorted(out.splitlines()) == sorted(out_file.read_text().splitlines())
    answers = [record for record in records if record["record"] == "answer"]
    rows = [record for record in records if record["record"] == "row"]
    assert len(answers) == (2 + 1) * 5  # questions, ways
    assert len(rows) == (2 + 1 + 1) * 5  # the depths, all depths, and one for `words`
    for row in rows:
        assert row["score_low"] <= row["score"] <= row["score_high"]
        assert row["model"] == str(tiny_model)
        assert row["revision"]
    # A budget larger than the context is full attention, whatever computes it and however it is asked.
    by_question = {}
    for one in answers:
        by_question.setdefault((one["task"], one["sample"], one["depth"]), set()).add(one["answer"])
    assert {len(said) for said in by_question.values()} == {1}
    assert {one["backend"] for one in answers} == {"dense", "cpu", "study"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tasks", "guess"], 2, "choose from passkey, needle"),
        (["--question", "loose"], 2, "choose from dense, sparse"),
        (["--depths", "0,101"], 2, "101 is more than 100"),
        (["--len", "4090"], 4, "the context of"),
        (["--len", "100"], 2, "too short for --tasks passkey"),
        (["--resume"], 2, "add -o FILE.jsonl"),
        (["-o", "/nowhere/rows.jsonl"], 2, "no such folder"),
        (["-o", str(BOOK)], 2, "line 1 is no row"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, code, message, evaluate, tiny_model, monkeypatch):
    monkeypatch.setattr("adamas_cli.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    got, out, err = evaluate("retrieval", "--text", BOOK, "--len", "2k", "-m", tiny_model, *arguments)
    assert (got, out) == (code, ""), err
    assert message in err
    assert err.count("\n") <= 2
