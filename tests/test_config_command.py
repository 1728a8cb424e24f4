"""`adamas config`: where settings come from, and the file that changes them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from test_cli import Runner, adamas, book, installed  # noqa: F401 - fixtures

from adamas_cli.commands.options import setting_names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "config.toml"


@pytest.fixture
def config(adamas: Runner, file: Path):  # noqa: F811
    def run(*arguments: str, **changes: str):
        return adamas("config", *arguments, **({"ADAMAS_CONFIG": str(file)} | changes))

    return run


def test_each_setting_says_where_it_comes_from(config, file: Path) -> None:
    file.parent.mkdir()
    file.write_text('max-tokens = "2k"\nthink = true\ninclude = ["*.py"]\nmodel = "from-the-file"\n')
    shown = json.loads(config("show", "--json", ADAMAS_MODEL="from-the-environment").stdout)
    assert (shown["path"], shown["exists"]) == (str(file), True)
    settings = shown["settings"]
    assert settings.keys() == setting_names()
    assert settings["max_tokens"] == {"value": 2048, "default": 1024, "source": "file"}
    assert settings["think"] == {"value": True, "default": None, "source": "file"}
    assert settings["include"]["value"] == ["*.py"]
    assert settings["model"]["value"] == "from-the-environment"
    assert settings["model"]["source"] == "environment"
    assert settings["dtype"] == {"value": "auto", "default": "auto", "source": "default"}
    rows = [line.split() for line in config("show").stdout.decode().splitlines()]
    assert ["max_tokens", "2048", "file"] in rows
    assert ["model", '"from-the-file"', "file"] in rows


def test_without_a_file_everything_is_a_default_and_it_says_how_to_make_one(config, file: Path) -> None:
    done = config("show")
    assert f"{file} does not exist: `adamas config init` writes it\n" == done.stderr.decode()
    assert config("path").stdout.decode() == f"{file}\n"
    assert not file.exists()


def test_init_writes_every_setting_as_a_comment_and_never_over_a_file(config, file: Path) -> None:
    assert config("init").stdout.decode() == f"{file}\n"
    text = file.read_text()
    assert tomllib.loads(text) == {}
    named = [line for line in text.splitlines() if line.startswith("#") and " = " in line[:30]]
    assert {line[1:].split(" = ")[0] for line in named} == setting_names()
    file.write_text("seed = 5\n")
    refused = config("init")
    assert refused.returncode == 2
    assert b"--force overwrites it" in refused.stderr
    assert file.read_text() == "seed = 5\n"
    assert config("init", "--force").returncode == 0
    assert file.read_text() == text


def test_a_file_with_every_default_uncommented_changes_nothing(config, file: Path) -> None:
    config("init")
    before = json.loads(config("show", "--json").stdout)["settings"]
    lines = file.read_text().splitlines()
    set_there = [line[1:] for line in lines if line[1:2].isalpha() and "not set" not in line]
    assert len(set_there) > 20
    file.write_text("\n".join(set_there))
    after = json.loads(config("show", "--json").stdout)["settings"]
    assert {name: setting["value"] for name, setting in after.items()} == {
        name: setting["value"] for name, setting in before.items()
    }
    assert sum(setting["source"] != "default" for setting in after.values()) == len(set_there)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("max_tokens = 2.5", "max_tokens"),
        ('attn = "some"', "attn"),
        ("budget = true", "budget"),
        ("offline = 'perhaps'", "offline"),
        ("temperature = -1", "temperature"),
        ("seed = {a = 1}", "seed"),
        ("include = [1]", "include"),
    ],
)
def test_a_wrong_value_is_a_usage_error_that_names_the_file(
    line: str,
    name: str,
    config,
    file: Path,
    adamas: Runner,  # noqa: F811
    book: Path,  # noqa: F811
) -> None:
    file.parent.mkdir()
    file.write_text(line + "\n")
    for done in (config("show"), adamas("ask", book, "Who?", ADAMAS_CONFIG=str(file))):
        told = done.stderr.decode()
        assert done.returncode == 2
        assert str(file) in told
        assert name in told
        assert len(told.splitlines()) <= 2
    assert config("path").returncode == 0  # so the file can be found and corrected


def test_a_wrong_flag_does_not_blame_the_file(adamas: Runner, file: Path, book: Path) -> None:  # noqa: F811
    done = adamas("ask", book, "Who?", "--attn", "some", ADAMAS_CONFIG=str(file))
    assert done.returncode == 2
    assert str(file) not in done.stderr.decode()


def test_the_installed_command_shows_settings() -> None:
    done = installed("config", "show", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["settings"].keys() == setting_names()
