"""Questions for parts, how answers are merged and kept, and the progress of a reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adamas_cli.engine.events import Prefill, Token
from adamas_cli.longdoc import resume
from adamas_cli.longdoc.events import Finished, Planned, Started, Working
from adamas_cli.longdoc.findings import Finding, grouped, label, merged_passages
from adamas_cli.longdoc.job import asking, summarizing
from adamas_cli.longdoc.levels import Tree
from adamas_cli.longdoc.notes import as_notes
from adamas_cli.longdoc.parts import Excerpt, Passage
from adamas_cli.longdoc.repository import repository_folders
from adamas_cli.longdoc.resume import Partials
from adamas_cli.prompt.template import load_template


def passage(path: str, first: int, last: int) -> Passage:
    return Passage(path, first, last, None, False)


def finding(*passages: Passage) -> Finding:
    return Finding(passages, 9, "An answer.", True, False)


@pytest.mark.parametrize("reply", ["NOTHING", "nothing.", " **NOTHING**\n", "NOTHING in this text.", ""])
def test_a_part_may_know_nothing(reply: str) -> None:
    assert not asking(["Who?"]).knows(reply)


@pytest.mark.parametrize("reply", ["Nothing came of it, said Darcy.", "Mr. Darcy", "He said NOTHING."])
def test_an_answer_with_the_word_in_it_is_one(reply: str) -> None:
    assert asking(["Who?"]).knows(reply)


def test_style_focus_and_words_are_asked_for_at_the_end() -> None:
    job = summarizing("bullets", "money", 80, None)
    (part,), (final,) = job.questions, job.finals
    assert "money" in part
    assert "80" not in part
    assert all(word in final for word in ("bullet", "money", "80 words"))
    assert job.knows("NOTHING")  # a summary may begin with any word


def test_every_job_has_its_templates() -> None:
    for job in (
        asking(["Who?"]),
        summarizing("brief", None, None, None),
        summarizing("brief", None, None, str),
    ):
        for name in (job.whole, job.part, job.merge):
            assert load_template(name).template.startswith("$documents")  # reuses what `ask` keeps


def test_neighbours_are_merged_into_one_passage() -> None:
    found = [finding(passage("a", 1, 9)), finding(passage("a", 10, 20)), finding(passage("b", 1, 4))]
    merged = merged_passages(found)
    assert [one.label for one in merged] == ["a:1-20", "b:1-4"]
    assert label(merged) == "a:1-20, b:1-4"
    assert label([passage(name, 1, 2) for name in "abcde"]) == "a:1-2, b:1-2, c:1-2 and 2 more"


def test_answers_are_taken_together_as_long_as_they_fit() -> None:
    assert grouped([3, 3, 3, 3, 3], 9) == [range(0, 3), range(3, 5)]
    assert grouped([20, 3, 20], 9) == [range(0, 1), range(1, 2), range(2, 3)]
    assert grouped([], 9) == []


def test_notes_are_whole_sentences_said_once() -> None:
    assert as_notes("He came. He went. He came. He", cut=True) == "He came. He went."
    assert as_notes("He came. He went", cut=False) == "He came. He went"
    assert as_notes("- one\n- two\n- one\n- two\n", cut=True) == "- one\n- two"
    assert as_notes("No end in sight", cut=True) == "No end in sight"


def test_kept_answers_are_found_by_all_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    partials = Partials({"weights": "a"})
    ids = np.arange(5)
    key = partials.key([ids[:3], ids[3:]])
    assert partials.find(key) is None
    partials.keep(key, "An answer.")
    assert Partials({"weights": "a"}).find(key) == "An answer."
    others = {
        Partials({"weights": "b"}).key([ids[:3], ids[3:]]),
        partials.key([ids[:2], ids[2:]]),
        partials.key([ids[:3], ids[3:] + 1]),
    }
    assert len(others | {key}) == 4
    assert Partials({"weights": "a"}, reads=False).find(key) is None
    (file,) = tmp_path.rglob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    for damage in (b"", b"\xff", b"[]", b'{"answer": 3}', b'{"answer": "An'):
        file.write_bytes(damage)
        assert partials.find(key) is None
    Partials({"weights": "a"}, writes=False).keep(key, "Another.")
    assert partials.find(key) is None


def test_answers_that_nobody_asks_for_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path))
    partials = Partials({})
    partials.keep("ab12", "An answer.")
    Partials({})
    assert partials.find("ab12") == "An answer."
    later = resume.time.time() + resume.KEPT_SECONDS + 60
    monkeypatch.setattr(resume.time, "time", lambda: later)
    Partials({})
    assert partials.find("ab12") is None


def test_a_folder_with_code_is_a_repository(tmp_path: Path) -> None:
    root = str(tmp_path)
    files = [Excerpt.of(f"{root}/{name}", "text") for name in ("README.md", "src/app/main.py", "tests/t.py")]
    folders = repository_folders([root], files)
    assert folders is not None
    assert [folders(file.path) for file in files] == [root, f"{root}/src", f"{root}/tests"]
    assert repository_folders([root], files[:1]) is None
    assert repository_folders([files[1].path], files) is None


def test_the_current_folder_is_grouped_too() -> None:
    folders = repository_folders(["."], [Excerpt.of("src/main.py", "text")])
    assert folders is not None
    assert folders("src/main.py") != folders("docs/index.md")


def test_the_tree_knows_what_is_left() -> None:
    tree = Tree()
    tree.update(Planned(0, ("a:1-9", "a:10-19", "a:20-29"), (1000, 1000, 1000), frozenset({0})))
    (level,) = tree.levels
    assert (level.done, level.left, tree.remaining_seconds) == (1, 2000, None)
    tree.update(Started(1))
    tree.update(Working(Prefill(500, 1000, 0, 5.0, 5.0, 500)))
    assert level.left == 1500
    tree.update(Working(Token(7, 9, 1009, 1009, 0.1, 0)))
    tree.update(Finished(1, True, 0, 100, 10.0, 2.0))
    assert (level.done, level.seconds) == (2, 12.0)
    # 1000 tokens of the last part and 3 answers of 100 to merge at 10 ms each, and one more answer of 2 s.
    assert tree.remaining_seconds == pytest.approx(15.0)
    tree.update(Planned(1, ("a:1-29",), (300,), frozenset()))
    assert [level.name for level in tree.levels] == ["parts", "merge 1"]
    tree.update(Planned(1, ("a:1-29",), (300,), frozenset()))  # for the next question
    assert [level.name for level in tree.levels] == ["parts", "merge 1"]
