"""`adamas ask` on files of other formats and on folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from document_files import encrypted_pdf, pdf
from test_cli import Runner, adamas, installed  # noqa: F401 - a fixture


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ask(adamas: Runner, tiny_model: Path, folder: Path, tmp_path: Path):  # noqa: F811
    def asked(*arguments: str, **changes: str):
        cache = {"ADAMAS_CACHE_DIR": str(tmp_path / "cache"), "ADAMAS_DOC_CACHE": str(tmp_path / "store")}
        return adamas("ask", *arguments, "Who?", "-m", tiny_model, "-n", "2", **cache, **changes)

    return asked


def test_a_scanned_pdf_is_said_and_ends_with_3(folder: Path) -> None:
    (folder / "scan.pdf").write_bytes(pdf(["", "", ""]))
    done = installed("ask", "scan.pdf", "Who?", cwd=folder)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.decode().count("\n") == 1
    assert "scan.pdf: 3 of 3 pages have no text (scanned?)" in done.stderr.decode()
    error = json.loads(installed("ask", "scan.pdf", "Who?", "--json", cwd=folder).stdout)["error"]
    assert (error["exit_code"], error["skipped"]) == (3, {"without text (scanned?)": 1})


def test_what_can_be_read_is_read_and_the_rest_is_counted(ask, folder: Path) -> None:
    (folder / "book.pdf").write_bytes(pdf(["Josef K. waited.", ""]))
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    (folder / "yarn.lock").write_text("x")
    (folder / "notes.md").write_text("text")
    done = ask(".", "--json", "-v")
    assert done.returncode == 0, done.stderr
    shown = done.stderr.decode()
    assert "book.pdf: 1 of 2 pages have no text (scanned?)\n" in shown
    assert "skipped 2: 1 encrypted, 1 lock files; --generated reads lock files\n" in shown
    assert "  encrypted: locked.pdf (" in shown
    listed = [document["path"] for document in json.loads(done.stdout)["documents"]]
    assert listed == [". (file tree)", "book.pdf", "notes.md"]
    listed = [
        document["path"]
        for document in json.loads(ask(".", "--json", "--no-tree", "--generated").stdout)["documents"]
    ]
    assert listed == ["book.pdf", "notes.md", "yarn.lock"]


def test_converted_text_is_kept_unless_nothing_is(ask, folder: Path, tmp_path: Path) -> None:
    (folder / "book.pdf").write_bytes(pdf(["Josef K. waited."]))
    texts = tmp_path / "cache" / "converted"
    assert ask("book.pdf").returncode == 0
    assert not texts.exists()  # ADAMAS_NO_DOC_CACHE is set for all tests
    assert ask("book.pdf", "--doc-cache-ro", ADAMAS_NO_DOC_CACHE="0").returncode == 0
    assert not texts.exists()
    assert ask("book.pdf", ADAMAS_NO_DOC_CACHE="0").returncode == 0
    assert len(list(texts.rglob("*.jsonl"))) == 1


def test_line_numbers_are_part_of_the_prompt(ask, folder: Path) -> None:
    (folder / "a.txt").write_text("x\ny\n" * 10)
    plain = json.loads(ask("a.txt", "--json").stdout)["documents"][0]["tokens"]
    numbered = json.loads(ask("a.txt", "--json", "--line-numbers").stdout)["documents"][0]["tokens"]
    assert numbered == plain + 9 * len("1| ") + 11 * len("10| ")  # one token per byte


def test_a_token_budget_ends_with_4_and_both_numbers(ask, folder: Path) -> None:
    (folder / "a.txt").write_text("x" * 500)
    record = json.loads(ask("a.txt", "--json").stdout)
    error = json.loads(ask("a.txt", "--json", "--token-budget", "400").stdout)["error"]
    needed = error["n_prompt_tokens"]
    assert needed == record["usage"]["prompt_tokens"]
    assert (error["exit_code"], error["n_token_budget"]) == (4, 400)
    assert f"= {needed:,} tokens > --token-budget 400. " in error["message"]
    assert ask("a.txt", "--token-budget", str(needed)).returncode == 0
    assert ask("a.txt", "--token-budget", str(needed - 1)).returncode == 4


def test_a_guess_is_said_on_stderr_and_an_encoding_can_be_named(ask, folder: Path) -> None:
    (folder / "a.txt").write_bytes("Zażółć gęślą jaźń".encode("cp1250"))
    done = ask("a.txt", "--json")
    assert done.returncode == 0, done.stderr
    assert "a.txt: read as windows-1250, by a guess; --encoding names another\n" in done.stderr.decode()
    named = ask("a.txt", "--json", "--encoding", "Windows-1250")
    assert named.returncode == 0, named.stderr
    assert "guess" not in named.stderr.decode()
    assert json.loads(named.stdout)["documents"] == json.loads(done.stdout)["documents"]
    wrong = ask("a.txt", "--encoding", "windows-9999")
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert "'windows-9999' is not an encoding such as windows-1250" in wrong.stderr.decode()


def test_a_flawed_log_is_read_and_a_binary_is_forced(ask, folder: Path) -> None:
    (folder / "a.log").write_bytes(b"\x1b[31mERROR\x1b[0m disk full\n" * 30 + bytes(64) + b"restart\n")
    done = ask("a.log")
    assert done.returncode == 0, done.stderr
    assert "a.log: left out: terminal codes (60), NUL bytes (64)\n" in done.stderr.decode()
    (folder / "b.bin").write_bytes(b"\x7fELF\2\1\1" + bytes(100))
    refused = ask("b.bin")
    assert refused.returncode == 3
    assert "1 binary; --text reads binary" in refused.stderr.decode()
    assert ask("b.bin", "--text").returncode == 0


@pytest.mark.parametrize("command", ["ask", "chat", "plan", "read", "summarize"])
def test_every_command_that_reads_takes_both_options(command: str) -> None:
    shown = installed(command, "--help-all").stdout.decode()
    assert "--encoding" in shown
    assert "--text" in shown
