"""The two lengths of a command's help."""

from __future__ import annotations

import pytest
from test_docs import help_of, printed_help

from adamas_cli.commands.folding import COMMON
from adamas_cli.commands.options import all_names

TWO_SCREENS = 90  # lines of 80 columns


def test_help_of_ask_fits_two_screens_and_tells_of_the_rest() -> None:
    shown = printed_help("ask", "--help", columns=80)
    assert len(shown.splitlines()) <= TWO_SCREENS
    assert "--help-all" in shown
    assert "--model" in shown
    assert "--scorer" not in shown
    assert "--scorer" in help_of("ask")


@pytest.mark.parametrize("command", ["summarize", "chat", "plan", "bench", "eval ppl"])
def test_each_command_of_many_flags_folds_them(command: str) -> None:
    shown = printed_help(*command.split(), "--help")
    assert "--help-all" in shown
    assert "--trust-remote-code" not in shown
    assert "--trust-remote-code" in help_of(*command.split())


def test_what_is_common_are_names_of_settings() -> None:
    assert COMMON - all_names() == set()
