"""`adamas eval answers`: how answers are compared, by hand, and the command on a tiny model."""

from __future__ import annotations

import json

import pytest

from adamas_cli.lab.eval.answers import compare, judge
from adamas_cli.lab.eval.squad import contains, exact_match, f1, normalized, word_f1


def test_answers_are_normalized_as_squad_does():
    assert normalized("The  Bingley's house, a Tale.") == "bingleys house tale"
    assert normalized("An-other theatre") == "another theatre"


def test_scores_by_hand():
    assert exact_match("Mr. Bingley.", ["Darcy", "mr bingley"]) == 1
    assert exact_match("It is Mr. Bingley.", ["Mr. Bingley"]) == 0
    assert contains("It is Mr. Bingley.", ["Darcy", "Bingley"]) == 1
    assert contains("He owns 50 acres.", ["5"]) == 0
    assert word_f1("He is Mr. Bingley", ["the Bingley", "Mr. Darcy of Pemberley"]) == pytest.approx(2 / 5)
    assert f1([1, 1, 2], [1, 3]) == pytest.approx(2 / 5)
    assert f1([], []) == 1
    assert f1([], [1]) == 0


def test_a_sparse_answer_beside_the_full_one():
    assert compare([5, 6, 7], [5, 6, 7]) == {"equal": 1, "leading": 1, "diverges_at": None, "f1_full": 1}
    found = compare([5, 6, 8, 9], [5, 6, 7])
    assert (found["equal"], found["leading"], found["diverges_at"]) == (0, 0.5, 2)
    assert found["f1_full"] == pytest.approx(4 / 7)
    assert compare([5], [5, 6])["diverges_at"] == 1  # one ends where the other continues
    assert compare([], [])["equal"] == 1
    assert set(judge("x", []).values()) == {None}


def test_the_command_on_a_tiny_model(evaluate, tiny_model, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "book.txt").write_text("Mr. Bingley has taken Netherfield Park.\n" * 12)
    questions = tmp_path / "questions.jsonl"
    lines = [
        {"question": "Who has taken it?", "answers": ["Bingley"], "document": "texts/book.txt"},
        {"question": "Which park?", "document": "texts/book.txt"},
    ]
    questions.write_text("\n".join(map(json.dumps, lines)))
    some = ["answers", "-m", tiny_model, "--budgets", "8,4k", "-n", "12", "--methods", "dot,quest"]
    some += ["--dtype", "float32"]
    code, out, err = evaluate(*some, "--questions", questions, "--format", "jsonl")
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    answers, rows = ([record for record in records if record["record"] == kind] for kind in ("answer", "row"))
    assert len(answers) == 2 * 5
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("full", 0), ("dot", 8), ("dot", 4096), ("quest", 8), ("quest", 4096)
    ]  # fmt: skip
    by_way = {(row["method"], row["budget"]): row for row in rows}
    for way in (("full", 0), ("dot", 4096), ("quest", 4096)):
        assert by_way[way]["equal"] == by_way[way]["leading"] == by_way[way]["f1_full"] == 1
        assert by_way[way]["diverges_at"] is None
    for row in rows:
        mine = [one for one in answers if (one["method"], one["budget"]) == (row["method"], row["budget"])]
        assert row["equal"] == sum(one["equal"] for one in mine) / 2
        assert (row["answers"], row["answers_known"]) == (2, 1)
        assert row["contains"] == next(one["contains"] for one in mine if one["known"])
    # The same question on the command line.
    book = tmp_path / "texts" / "book.txt"
    code, out, err = evaluate(*some, "--document", book, "-q", "Which park?", "--format", "json")
    assert code == 0, err
    assert [row["contains"] for row in json.loads(out)] == [None] * 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "adamas eval answers --document book.txt -q"),
        (["--document", "book.txt"], 2, "give a document and questions"),
        (["--document", "book.txt", "-q", " "], 2, "a question is empty"),
        (["--document", "nowhere.txt", "-q", "Who?"], 2, "nowhere.txt"),
        (["--document", "book.txt", "-q", "Who?", "-n", "5k"], 4, "the context of"),
        (["--document", "book.txt", "--questions", "bad.jsonl"], 2, "leave out --document"),
        (["--questions", "nowhere.jsonl"], 2, "No such file"),
        (["--questions", "bad.jsonl"], 2, "bad.jsonl, line 2"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    arguments, code, message, evaluate, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adamas_cli.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    (tmp_path / "book.txt").write_text("Mr. Bingley has taken Netherfield Park.\n")
    (tmp_path / "bad.jsonl").write_text('{"question": "Who?", "document": "book.txt"}\n{"question": 1}\n')
    got, out, err = evaluate("answers", "-m", tiny_model, *arguments)
    assert (got, out) == (code, ""), err
    assert message in err
    assert err.count("\n") <= 2
