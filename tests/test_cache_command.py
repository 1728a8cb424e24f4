"""`adamas ask` with kept documents, and `adamas cache`, in this process on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from document_files import pdf
from test_cli import Runner, adamas, book  # noqa: F401 - fixtures


@pytest.fixture
def asked(adamas: Runner, tiny_model: Path, book: Path, tmp_path: Path):  # noqa: F811
    """Asks about a book of a few thousand tokens, or runs another command, with its own store."""
    book.write_text("Mr. Bingley has taken Netherfield Park.\n" * 60)
    store = {
        "ADAMAS_NO_DOC_CACHE": "0",
        "ADAMAS_DOC_CACHE": str(tmp_path / "store"),
        "ADAMAS_CACHE_DIR": str(tmp_path / "cache"),
    }

    def ask(*options: str):
        return adamas("ask", book, "-q", "Who?", "-m", tiny_model, "-n", "4", *options, **store)

    ask.book = book
    ask.run = lambda *arguments: adamas("cache", *arguments, **store)
    ask.json = lambda *options: json.loads(ask("--json", *options).stdout)
    return ask


def reused(record) -> int:
    return record["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_the_second_question_reads_the_document_from_disk(asked) -> None:
    cold, warm = asked.json(), asked.json()
    assert reused(cold) == 0
    assert 0 < warm["usage"]["prompt_tokens"] - reused(warm) < 100
    assert warm["answer"] == cold["answer"]
    done = asked()
    total = warm["usage"]["prompt_tokens"]
    cut = "the answer was cut at --max-tokens\n"
    assert done.stderr.decode() == f"reused {reused(warm):,} of {total:,} tokens\n{cut}"
    assert asked("--quiet").stderr == b""


def test_the_store_can_be_left_out_or_only_read(asked) -> None:
    assert reused(asked.json("--doc-cache-ro")) == 0
    assert reused(asked.json("--no-doc-cache")) == 0
    assert reused(asked.json()) == 0
    assert reused(asked.json("--no-doc-cache")) == 0
    assert reused(asked.json("--doc-cache-ro")) > 0
    assert reused(asked.json("--doc-cache-dtype", "int8")) == 0
    assert reused(asked.json("--doc-cache-dtype", "int8")) > 0


def test_listing_and_removing(asked) -> None:
    empty = asked.run("ls")
    assert (empty.stdout, empty.stderr) == (b"", b"no documents are kept yet\n")
    assert json.loads(asked.run("ls", "--json").stdout) == []
    record = asked.json()
    (held,) = json.loads(asked.run("ls", "--json").stdout)
    assert held["documents"] == [str(asked.book)]
    assert held["tokens"] == held["tokens_kept"] >= record["documents"][0]["tokens"]
    assert held["bytes"] > 0
    line = asked.run("ls").stdout.decode().splitlines()[1]
    assert line.startswith(held["id"])
    assert line.endswith(str(asked.book))
    assert json.loads(asked.run("info", held["id"][:5], "--json").stdout) == held
    assert f"blocks kept  {held['blocks']}\n" in asked.run("info", str(asked.book)).stdout.decode()
    assert asked.run("info", "nothing").returncode == 2
    assert asked.run("rm").returncode == 2
    assert asked.run("rm", held["id"]).returncode == 2  # no terminal to confirm
    removed = json.loads(asked.run("rm", held["id"], "-y", "--json").stdout)
    assert removed["removed"] == [held["id"]]
    assert removed["bytes"] >= held["bytes"]
    assert reused(asked.json()) == 0
    assert asked.run("rm", "--all", "-y").stdout.startswith(b"removed 1 documents")


def test_pruning_and_checking(asked, tmp_path: Path) -> None:
    asked()
    assert json.loads(asked.run("prune", "--max-size", "1g", "--json").stdout)["removed"] == []
    checked = json.loads(asked.run("verify", "--json").stdout)
    assert checked["checked"] > 0
    assert checked["damaged"] == []
    file = next((tmp_path / "store").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = asked.run("verify")
    assert found.returncode == 1
    assert b"a checksum differs" in found.stdout
    assert asked.run("prune", "--max-size", "0").stdout.startswith(b"removed 1 documents")
    assert asked.run("path").stdout.decode().strip() == str(tmp_path / "store")
    assert json.loads(asked.run("path", "--json").stdout) == {"path": str(tmp_path / "store")}


def test_texts_of_converted_files_are_told_and_go_too(asked, tmp_path: Path) -> None:
    def converted() -> list[Path]:
        return list((tmp_path / "cache" / "converted").rglob("*.jsonl"))

    (tmp_path / "a.pdf").write_bytes(pdf(["Mr. Bingley has taken Netherfield Park."]))
    asked(str(tmp_path / "a.pdf"))
    assert len(converted()) == 1
    assert asked.run("ls").stderr.decode().endswith("MB of text from 1 converted files\n")
    assert asked.run("prune", "--max-size", "1g").returncode == 0
    assert len(converted()) == 1
    assert asked.run("prune", "--max-size", "0").returncode == 0
    assert converted() == []
    asked(str(tmp_path / "a.pdf"))
    partial = tmp_path / "cache" / "partials" / "ab" / "ab12.json"
    partial.parent.mkdir(parents=True)
    partial.write_text("An answer of a part.")
    assert asked.run("rm", "--all", "-y").returncode == 0
    assert converted() == []
    assert not partial.exists()
