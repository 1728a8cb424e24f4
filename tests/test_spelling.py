"""Settings in messages: named plainly below the commands, spelled as flags for users."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import all_flags

import adamas_cli
from adamas_cli.commands.failures import report
from adamas_cli.commands.options import setting_names
from adamas_cli.errors import UsageError
from adamas_cli.terminal.spelling import FLAGS, spelled

ROOT = Path(adamas_cli.__file__).parent
ABOVE = ("commands", "terminal", "chat", "cli.py")
SENTENCE = re.compile(r"\s")


def sentences() -> Iterator[tuple[str, str]]:
    """Strings of more than one word in the modules below the commands, docstrings included."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        if place.parts[0] in ABOVE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and SENTENCE.search(node.value):
                yield str(place), node.value


def test_every_setting_is_spelled_as_a_flag_that_there_is() -> None:
    assert set(FLAGS.values()) <= all_flags()


def test_every_setting_that_a_message_names_has_a_spelling() -> None:
    named = {
        name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
        for name in re.findall(r"`([a-z_]+)`", part.value)
    }
    assert {"attn", "ctx_size", "quantization"} < named
    assert named & setting_names() <= FLAGS.keys()


def test_nothing_below_the_commands_names_a_flag() -> None:
    flags = {flag for flag in all_flags() if flag.startswith("--")}
    found = [
        (place, flag)
        for place, text in sentences()
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
        if flag in flags
    ]
    assert found == []


def test_users_read_flags_and_everything_else_as_it_is() -> None:
    assert spelled("Raise `ctx_size` or lower `max_tokens`.") == "Raise --ctx-size or lower -n."
    assert spelled("run `adamas models ls`, or `unknown`; `-`") == "run `adamas models ls`, or `unknown`; `-`"


def test_errors_are_spelled_on_stderr_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(UsageError("leave out `dtype`", skipped={"over `max_file_size`": 1}), as_json=True) == 2
    told = capsys.readouterr()
    assert told.err == "adamas: leave out --dtype\n"
    assert '"message": "leave out --dtype"' in told.out
    assert '"over --max-file-size": 1' in told.out
