"""The rows of `adamas eval`: stored in a file, continued, printed, plotted, and how much time remains."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adamas_cli.commands.eval.report import Report
from adamas_cli.engine.events import Prefill
from adamas_cli.errors import INTERRUPTED, UsageError
from adamas_cli.lab.eval.columns import Column, decimals
from adamas_cli.lab.eval.ledger import Ledger
from adamas_cli.lab.eval.workload import Workload

BOOK = Path(__file__).parents[1] / "docs" / "examples" / "pride-and-prejudice-1-4.txt"
PASSKEY = ["retrieval", "--text", BOOK, "--len", "900", "--tasks", "passkey", "--depths", "50"]


def test_a_file_is_continued_and_nothing_of_it_is_lost(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"model": "a", "kl": 1}\n{"model": "b", "kl": 2}\n{"model": "c", "k')
    ledger = Ledger(path, resume=True)
    assert ledger.find({"model": "b"}) == {"model": "b", "kl": 2}
    assert ledger.find({"model": "c"}) is None
    assert ledger.find({"model": "b", "seed": 1}) is None
    assert ledger.foreign == 1
    assert path.read_text().endswith('"k')  # nothing is written until there is a row
    ledger.add({"model": "c", "kl": 3})
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert Ledger(path, resume=False).find({"model": "b"}) is None


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"model": "a"}')
    ledger = Ledger(path, resume=True)
    ledger.add({"model": "b"})
    assert path.read_text() == '{"model": "a"}\n{"model": "b"}\n'


@pytest.mark.parametrize("content", ["It is a truth", "[1]\n", '{"a": 1}\nprose\n{"b": 2}\n'])
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(content)
    with pytest.raises(UsageError, match="is no row"):
        Ledger(path, resume=False)
    assert path.read_text() == content


def test_a_killed_run_continued_gives_the_same_rows(evaluate, tiny_model, tmp_path, monkeypatch):
    some = [*PASSKEY, "-m", tiny_model, "--samples", "3", "--budgets", "16", "--format", "jsonl"]
    code, whole, err = evaluate(*some)
    assert code == 0, err
    path = tmp_path / "rows.jsonl"
    kept = whole.splitlines()[:3]
    foreign = json.dumps({**json.loads(kept[0]), "revision": "another", "answer": "other"})
    path.write_text("\n".join([foreign, *kept, whole.splitlines()[3][:90]]))
    code, out, err = evaluate(*some, "-o", path, "--resume")
    assert (code, out) == (0, whole)
    assert "1 rows with other settings stay in the file" in err
    lines = path.read_text().splitlines()
    assert lines[0] == foreign
    assert sorted(lines[1:]) == sorted(whole.splitlines())
    # All rows are there: no weights are loaded, and the file stays unchanged.
    monkeypatch.setattr("adamas_cli.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    before = path.read_bytes()
    assert evaluate(*some, "-o", path, "--resume")[:2] == (0, whole)
    assert path.read_bytes() == before


def test_ctrl_c_leaves_whole_rows(tiny_model, tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "adamas_cli", "eval", *PASSKEY, "-m", tiny_model, "--samples", "500"]
    process = subprocess.Popen(
        [*map(str, command), "-o", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"ADAMAS_CONFIG": "/proc/adamas/config.toml"},
    )
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate()
    assert time.monotonic() - began < 2  # one second, or more on a busy machine
    assert (process.returncode, out) == (INTERRUPTED, b"")
    assert err.endswith(b"adamas: interrupted\n")
    content = path.read_text()
    assert content.endswith("\n")
    assert all(json.loads(line)["record"] == "answer" for line in content.splitlines())


class Terminal(io.StringIO):
    def isatty(self):
        return True


COLUMNS = (Column("name", "name"), Column("score", "score", decimals(2), interval=True))
ROWS = [
    {"record": "row", "name": "a|b\x1b[31m", "score": 0.5, "score_low": 0.25, "score_high": 1.0, "by": [1]},
    {"record": "row", "name": "c", "score": None, "score_low": None, "score_high": None, "by": [2]},
]


def printed(form, stream):
    with Report(form, COLUMNS, stream) as report:
        for row in ROWS:
            report.detail({"record": "answer"})
            report.row(row)
        early = stream.getvalue()
    return early, stream.getvalue()


def test_the_forms():
    early, text = printed(None, io.StringIO())
    assert early == text  # each row as it comes
    assert text.splitlines()[2:] == ["| a\\|b | 0.50 (0.25 to 1.00) |", "| c |  |"]
    early, text = printed(None, Terminal())
    assert early == ""  # progress is drawn in the meantime
    assert "name" in text
    assert "0.50 (0.25 to 1.00)" in text
    assert "\x1b[31m" not in text
    assert json.loads(printed("json", io.StringIO())[1]) == ROWS
    lines = printed("jsonl", io.StringIO())[1].splitlines()
    assert [json.loads(line)["record"] for line in lines] == ["answer", "row"] * 2
    rows = list(csv.DictReader(io.StringIO(printed("csv", io.StringIO())[1])))
    assert [row["score"] for row in rows] == ["0.5", ""]
    assert "by" not in rows[0]


def interrupted(form, stream):
    with Report(form, COLUMNS, stream) as report:
        report.row(ROWS[0])
        raise KeyboardInterrupt


def test_what_was_measured_is_shown_when_a_run_on_a_terminal_is_interrupted():
    stream, half = Terminal(), io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        interrupted(None, stream)
    assert "0.50" in stream.getvalue()
    with pytest.raises(KeyboardInterrupt):
        interrupted("json", half)
    assert half.getvalue() == ""


def test_the_rest_of_a_run_is_told_from_what_was_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    work = Workload()
    for _ in range(2):
        work.plan_reading(1000)
        work.plan_steps("full", 10, 1000)
        work.plan_steps("dot", 10, 1000)
    assert work.total == 2 * 1020
    assert work.remaining() is None
    told = []
    work.advance = told.append

    def reading():
        yield Prefill(0, 1000, 0, 0.0, None, 500)
        for done in (500, 1000):
            now[0] += 5
            yield Prefill(done, 1000, 0, now[0], None, 500)

    work.read(1000, reading())
    with work.steps("full", 10, 1000):
        now[0] += 4
    assert work.remaining() == pytest.approx(10 + 3 * 4, rel=0.05)  # `dot` is assumed to be as slow
    with work.steps("dot", 10, 1000):
        now[0] += 1
    assert work.remaining() == pytest.approx(10 + 4 + 1, rel=0.05)
    now[0] += 3
    assert work.remaining() == pytest.approx(12, rel=0.05)
    assert sum(told) == 1020


def test_plots_are_drawn(evaluate, tiny_model, tmp_path):
    folder = tmp_path / "plots"
    some = ["-m", tiny_model, "--budgets", "8,16", "--methods", "dot", "--plot", folder]
    for arguments in (
        [*PASSKEY, "--samples", "1"],
        ["ppl", "--text", BOOK, "--len", "300", "--scored", "16"],
        ["answers", "--document", BOOK.with_name("questions.jsonl"), "-q", "Who?", "-n", "4"],
    ):
        code, _, err = evaluate(*arguments, *some)
        assert code == 0, err
    pictures = sorted(path.name for path in folder.iterdir())
    stems = ["answers-by-budget", f"ppl-{BOOK.stem}-300-by-budget", f"ppl-{BOOK.stem}-300-recall-by-layer"]
    stems.append("retrieval-passkey-dense-question")
    assert pictures == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))
    for path in folder.iterdir():
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size > 5000


def test_without_matplotlib_nothing_is_measured(evaluate, tiny_model, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "adamas_cli.commands.eval.shared.find_spec",
        lambda name: None if name == "matplotlib" else found(name),
    )
    monkeypatch.setattr("adamas_cli.models.load", lambda *a, **k: pytest.fail("weights were loaded"))
    code, out, err = evaluate(*PASSKEY, "-m", tiny_model, "--plot", tmp_path)
    assert (code, out) == (2, "")
    assert "pip install 'adamas[plot]'" in err
