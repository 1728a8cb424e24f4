"""The examples in the help: each command has some, and the parser accepts each of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from test_cli import Runner, adamas  # noqa: F401 - fixtures

from adamas_cli.cli import app
from adamas_cli.commands.examples import EXAMPLES
from adamas_cli.commands.options import with_defaults
from adamas_cli.commands.table import SUMMARIES, build

ROOT = typer.main.get_command(app)
ROOT.commands = {name: build(name) for name in SUMMARIES}


def leaves(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that runs something."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path
        return
    for name, child in below.items():
        yield from leaves(child, (*path, name))


def arguments_of(line: str) -> list[str]:
    """The arguments of the last call of `adamas` in a shell's line."""
    words = shlex.shlex(line.replace("$(", " ").replace(")", " "), posix=True, punctuation_chars="|>&;")
    words.whitespace_split = True
    found: list[str] = []
    for word in words:
        if word == "adamas":
            found = []
        elif word == ">":
            break
        else:
            found.append(word)
    return found


def test_every_command_has_examples_and_they_belong_to_one() -> None:
    commands = {" ".join(path) for path in leaves()}
    assert "ask" in commands
    assert "cache ls" in commands
    assert commands | {""} == set(EXAMPLES)


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_list_of_commands_says_what_the_command_says(name: str) -> None:
    assert ROOT.commands[name].help.split("\n\n")[0].replace("\n", " ").strip() == SUMMARIES[name]


LINES = [(path, line) for path, lines in EXAMPLES.items() for line in lines if path]


@pytest.mark.parametrize(("path", "line"), LINES, ids=[line for _, line in LINES])
def test_each_example_parses(path: str, line: str) -> None:
    words, command = with_defaults(arguments_of(line)), ROOT
    for name in path.split():
        assert words.pop(0) == name
        command = command.commands[name]
    context = command.make_context(path, words)
    assert context.command is command


def test_a_flag_that_is_none_does_not_parse() -> None:
    with pytest.raises(typer.BadParameter.__bases__[0]):
        ROOT.commands["ask"].make_context("ask", arguments_of("adamas ask book.txt --no-such-flag"))


def test_the_help_ends_with_the_examples_as_they_are_written(adamas: Runner) -> None:  # noqa: F811
    for path in ("ask", "cache rm", "eval ppl"):
        shown = adamas(*path.split(), "--help", COLUMNS="120", NO_COLOR="1").stdout.decode()
        end = [line.strip() for line in shown[shown.index("Examples") :].splitlines()]
        expected = ["Examples"]
        for line, purpose in EXAMPLES[path].items():
            expected += [f"# {purpose}", f"$ {line}"]
        assert [line for line in end if line] == expected
