"""`adamas summarize` and `adamas ask --on-overflow map-reduce` on a tiny random model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from adamas_cli.cli import run
from adamas_cli.errors import INTERRUPTED
from adamas_cli.longdoc import work

ADAMAS = str(Path(sys.executable).with_name("adamas"))
LIBRARY_LEVELS = ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY")  # set by every run; restored afterwards
PART_TOKENS = work.PART_TOKENS
CONTEXT = "1536"
SENTENCE = "It is a truth universally acknowledged, that a single man is in want of a wife.\n"

NO_CONFIG = "/proc/adamas/config.toml"  # neither exists nor can be created


@dataclass(frozen=True)
class Result:
    """The results of one command line."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


def sentences(count: int) -> str:
    """Lines that all differ, because repeated lines are shortened."""
    return "".join(f"{number}. {SENTENCE}" for number in range(count))


@pytest.fixture
def adamas(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command with the tiny model in a separate folder, in this process, which has already loaded
    torch.
    """
    for name in [name for name in os.environ if name.startswith(("ADAMAS_", "COLUMNS"))]:
        monkeypatch.delenv(name)
    own = {"ADAMAS_CONFIG": NO_CONFIG, "ADAMAS_CACHE_DIR": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    libraries = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | dict.fromkeys(LIBRARY_LEVELS, "error")
    for name, value in (own | libraries).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(work, "PART_TOKENS", 24)  # a random model writes as much as it may
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments: str) -> Result:
        capfd.readouterr()
        with warnings.catch_warnings():
            command, *rest = arguments
            code = run([command, "-m", str(tiny_model), "--ctx-size", CONTEXT, *rest])
        return Result(code, *capfd.readouterr())

    return run_here


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Four parts of the tiny model's context, at one token per byte."""
    path = tmp_path / "book.txt"
    chapters = [f"CHAPTER {number}\n\n" + SENTENCE * 12 for number in range(1, 5)]
    path.write_text("".join(chapters))
    return path


def test_what_fits_is_read_in_one_pass(adamas: Run, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text(SENTENCE)
    done = adamas("summarize", "note.txt", "-n", "8", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["parts"], record["levels"]) == ([], 0)
    assert [document["path"] for document in record["documents"]] == ["note.txt"]
    assert record["question"] == "Write one short paragraph."


def test_a_long_text_is_read_in_parts_and_resumed(adamas: Run, book: Path) -> None:
    done = adamas("summarize", "book.txt", "-n", "8", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    parts = record["parts"]
    assert [part["documents"][0]["section"] for part in parts] == [f"CHAPTER {n}" for n in range(1, 5)]
    lines = [(part["documents"][0]["first_line"], part["documents"][0]["last_line"]) for part in parts]
    assert lines == [(1, 14), (15, 28), (29, 42), (43, 56)]
    assert not any(part["resumed"] for part in parts)
    assert record["levels"] >= 1
    assert record["truncated"] is False
    assert record["usage"]["prompt_tokens"] > book.stat().st_size
    assert record["usage"]["completion_tokens"] > 0
    for number, (first, last) in enumerate(lines, start=1):
        assert f"part {number} of 4: book.txt:{first}-{last} · " in done.stderr
    again = adamas("summarize", "book.txt", "-n", "8", "--json")
    assert "resumed 4 of 4 parts" in again.stderr
    assert "part 1 of 4" not in again.stderr
    repeated = json.loads(again.stdout)
    assert repeated["answer"] == record["answer"]
    assert [part["answer"] for part in repeated["parts"]] == [part["answer"] for part in parts]
    assert repeated["usage"]["prompt_tokens"] < record["usage"]["prompt_tokens"]
    (book).write_text(book.read_text().replace("truth", "lie", 1))  # in the first part
    assert "resumed 3 of 4 parts" in adamas("summarize", "book.txt", "-n", "8").stderr
    assert "resumed" not in adamas("summarize", "book.txt", "-n", "8", "--no-doc-cache").stderr
    assert "resumed" not in adamas("summarize", "book.txt", "-n", "8", "--temp", "1").stderr


def test_answers_are_merged_in_as_many_levels_as_needed(adamas: Run, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(sentences(60))
    done = adamas("summarize", "long.txt", "-n", "400", "--json", "--ctx-size", "768")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["parts"]) >= 8
    assert record["levels"] >= 2
    assert "merge 1 1 of " in done.stderr


def test_questions_are_asked_of_every_part(adamas: Run, book: Path) -> None:
    questions = ("-q", "Who came?", "-q", "Where to?")
    done = adamas("ask", "book.txt", *questions, "-n", "8", "--on-overflow", "map-reduce", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert [first["question"], second["question"]] == ["Who came?", "Where to?"]
    assert len(first["parts"]) == len(second["parts"]) == 4
    # The second question finds every part in the cache.
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > book.stat().st_size
    plain = adamas("ask", "book.txt", "Who came?", "-n", "8", "--on-overflow", "map-reduce")
    assert "resumed 4 of 4 parts" in plain.stderr
    assert plain.stdout.strip() == first["answer"].strip()
    knowing = [part["documents"][0] for part in first["parts"] if part["knows"]]
    assert [f"  book.txt:{where['first_line']}-{where['last_line']}" for where in knowing] == [
        line for line in plain.stderr.splitlines() if line.startswith("  book.txt:")
    ]
    refused = adamas("ask", "book.txt", "Who came?", "-n", "8")
    assert refused.returncode == 4


def test_an_interrupted_run_goes_on_where_it_stopped(
    adamas: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PART_TOKENS", PART_TOKENS)  # as in a separate process
    (tmp_path / "long.txt").write_text(sentences(100))
    options = ("-n", "8", "-o", "summary.md", "-m", str(tiny_model), "--ctx-size", CONTEXT)
    process = subprocess.Popen(
        [ADAMAS, "summarize", "long.txt", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("part 2 of"):
            break
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    with process.stderr:
        rest = process.stderr.read()
    assert process.wait(5) == INTERRUPTED
    assert time.monotonic() - began < 2  # one second, or more on a busy machine
    assert rest.endswith("adamas: interrupted\n")
    assert not (tmp_path / "summary.md").exists()
    finished = sum(line.startswith("part ") for line in [*told, *rest.splitlines()])
    again = adamas("summarize", "long.txt", "-n", "8", "-o", "summary.md")
    assert again.returncode == 0, again.stderr
    (resumed,) = [line for line in again.stderr.splitlines() if line.startswith("resumed ")]
    kept, whole = int(resumed.split()[1]), int(resumed.split()[3])
    assert finished <= kept <= whole  # parts are answered together: some may be done but not yet reported
    assert (tmp_path / "summary.md").read_text().strip()


def test_a_repository_is_described_as_one(adamas: Run, tmp_path: Path) -> None:
    for name in ("app/main.py", "app/parse.py", "tests/test_app.py"):
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("def run() -> None:\n    print('running')\n\n\n" * 9)
    done = adamas("summarize", "project", "--no-tree", "-n", "8", "--json")
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["parts"]
    folders = [{where["path"].split("/")[1] for where in part["documents"]} for part in parts]
    assert folders == [{"app"}, {"tests"}]


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        ((), 2, "give documents, as in: adamas summarize book.txt"),
        (("book.txt", "--style", "long"), 2, "'brief', 'detailed', 'bullets'"),
        (("absent.txt",), 2, "no file or folder 'absent.txt'"),
        (("blank.txt",), 3, "Nothing readable in blank.txt: skipped 1: 1 blank."),
        (("book.txt", "-n", "1400"), 4, "lower -n or raise --ctx-size"),
        (("book.txt", "--on-overflow", "error"), 4, "context 1,536"),
        (("book.txt", "--token-budget", "1k"), 4, "--token-budget 1,024"),
    ],
)
def test_mistakes_are_told_in_two_lines(
    adamas: Run, book: Path, arguments: tuple[str, ...], code: int, hint: str
) -> None:
    (book.parent / "blank.txt").write_text(" \n\n\t\n")
    done = adamas("summarize", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_max_words_bounds_the_answer(adamas: Run, book: Path) -> None:
    done = adamas("summarize", "book.txt", "--max-words", "4", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert "Use at most 4 words." in record["question"]
    assert len(record["answer"].encode()) <= 8 * 3  # a token is a byte, or replaces a broken character
