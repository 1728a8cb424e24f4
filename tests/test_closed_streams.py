"""Closed standard streams, as under some supervisors, and a bare environment, as under cron."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_cli import ADAMAS, environment

CLOSED = ("<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-")
LOST = b"stdout is closed, so what is printed there is lost; -o writes an answer to a file\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("Mr. Bingley has taken Netherfield Park.\n")
    return tmp_path


def shell(line: str) -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", line]
    return subprocess.run(
        command, capture_output=True, env=environment(), stdin=subprocess.DEVNULL, timeout=120
    )


@pytest.mark.parametrize("closed", CLOSED)
def test_a_text_is_printed_where_there_is_somewhere(closed: str) -> None:
    done = shell(f"{ADAMAS} read book.txt {closed}")
    assert done.returncode == 0
    wanted = b'<document path="book.txt">\nMr. Bingley has taken Netherfield Park.\n\n</document>\n'
    assert done.stdout == (b"" if ">&- " in f"{closed} ".replace("2>&-", "") else wanted)
    told = b"1 document, 80 characters\n"
    lost = LOST if closed == ">&-" else b""
    assert done.stderr == (b"" if "2>&-" in closed else lost + told)


@pytest.mark.parametrize("closed", CLOSED)
def test_a_file_gets_the_text_and_nothing_else(closed: str, folder: Path) -> None:
    """The first file opened would get a closed stream's descriptor, and all that is printed there."""
    done = shell(f"{ADAMAS} read book.txt -o out.txt {closed}")
    assert done.returncode == 0
    assert LOST not in done.stderr
    assert (folder / "out.txt").read_text().endswith("Park.\n\n</document>\n")
    assert (folder / "out.txt").read_text().count("\n") == 4


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_questions_are_answered(closed: str, tiny_model: Path, folder: Path) -> None:
    output = "" if closed == "<&-" else "-o out.txt"
    done = shell(f"{ADAMAS} ask book.txt 'Who came?' -m {tiny_model} -n 4 {output} {closed}")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout or (folder / "out.txt").read_bytes()


def test_a_closed_stdin_is_an_empty_one() -> None:
    done = shell(f"{ADAMAS} read - <&-")
    assert done.returncode == 3
    assert done.stderr == b"adamas: Nothing readable in stdin: skipped 1: 1 empty.\n"
    assert shell(f"{ADAMAS} read nothing 2>&-").returncode == 2


@pytest.mark.parametrize("variables", ["", "HOME=/nowhere", "TERM=dumb LANG=C COLUMNS=0", "TERM="])
def test_a_bare_environment_is_enough(variables: str) -> None:
    done = shell(f"env -i PATH=/usr/bin:/bin {variables} {ADAMAS} read book.txt")
    assert done.returncode == 0, done.stderr
    assert b"Netherfield" in done.stdout
    assert done.stderr == b"1 document, 80 characters\n"
