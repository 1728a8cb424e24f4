"""`adamas models`: answers on stdout, the rest on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adamas_cli.cli import run
from adamas_cli.models import aliases
from adamas_cli.models.fetch import local_file, partial_file
from adamas_cli.models.gguf.settings import ORIGIN, settings_folder

ALIAS = aliases.Alias(
    name="tiny", title="Tiny", license="MIT", context=64, file="tiny.gguf", bytes=3, sha256="ab" * 32
)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with only `tiny` to choose from, and no models of other programs."""
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ADAMAS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.delenv("ADAMAS_MODEL", raising=False)
    for module in ("commands.models", "models.inventory"):
        monkeypatch.setattr(f"adamas_cli.{module}.aliases", lambda: {"tiny": ALIAS})
    monkeypatch.setattr("adamas_cli.models.inventory._of_hub", lambda: iter(()))


def place(content: bytes = b"abc") -> None:
    local_file(ALIAS).parent.mkdir(parents=True, exist_ok=True)
    local_file(ALIAS).write_bytes(content)


def settle(sha256: str = ALIAS.sha256, file: str = ALIAS.file) -> Path:
    folder = settings_folder(sha256)
    folder.mkdir(parents=True)
    (folder / ORIGIN).write_text(json.dumps({"file": file, "sha256": sha256}))
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "num_attention_heads": 2}))
    return folder


def test_ls_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "ls"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["tiny", "-", "Tiny"]
    place()
    settle()
    settle("cd" * 32, "mine.gguf")
    assert run(["models", "ls", "--json"]) == 0
    tiny, mine = json.loads(capsys.readouterr().out)
    assert (tiny["name"], tiny["fetched"]) == ("tiny", True)
    assert mine["name"] == "mine.gguf"
    assert tiny["bytes_on_disk"] == sum(
        path.stat().st_size for path in (local_file(ALIAS), *settings_folder(ALIAS.sha256).iterdir())
    )


def test_ls_marks_interrupted_downloads(capsys: pytest.CaptureFixture[str]) -> None:
    partial_file(ALIAS).parent.mkdir(parents=True)
    partial_file(ALIAS).write_bytes(b"a")
    assert run(["models", "ls"]) == 0
    assert "(partial)" in capsys.readouterr().out


def test_rm_removes_the_file_and_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    place()
    folder = settle()
    assert run(["models", "rm", "tiny", "-y"]) == 0
    assert "removed tiny" in capsys.readouterr().out
    assert not local_file(ALIAS).exists()
    assert not folder.exists()
    assert run(["models", "rm", "tiny", "-y"]) == 5
    assert "nothing to remove" in capsys.readouterr().err


def test_rm_without_a_terminal_needs_yes(capsys: pytest.CaptureFixture[str]) -> None:
    place()
    assert run(["models", "rm", "tiny"]) == 2
    assert "-y" in capsys.readouterr().err
    assert local_file(ALIAS).exists()


def test_show_gives_the_hash_the_licence_and_the_shape(capsys: pytest.CaptureFixture[str]) -> None:
    settle()
    assert run(["models", "show", "tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["sha256"], facts["license"], facts["layers"]) == (ALIAS.sha256, "MIT", 4)
    assert run(["models", "show", "tiny"]) == 0
    assert ALIAS.sha256 in capsys.readouterr().out
    assert run(["models", "show", "nothing"]) == 5
    assert run(["models", "show", "nothing", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "model_unavailable"


def test_default_prints_and_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "default", "tiny"]) == 0
    assert run(["models", "default"]) == 0
    assert capsys.readouterr().out == "tiny\ntiny\n"


def test_pull_prints_the_path_and_replaces_a_damaged_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place(b"bad")
    monkeypatch.setattr("adamas_cli.models.fetch.fetch", lambda *_, **__: place(b"abc"))
    assert run(["models", "pull", "tiny"]) == 0
    assert capsys.readouterr().out == f"{local_file(ALIAS)}\n"
    assert local_file(ALIAS).read_bytes() == b"abc"


def test_pull_of_what_is_a_file_here_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.gguf").touch()
    assert run(["models", "pull", str(tmp_path / "my.gguf")]) == 2
    assert "already on this machine" in capsys.readouterr().err
