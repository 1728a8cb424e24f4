"""`adamas completion`: scripts that complete commands, flags and their values in a shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import typer

_VARIABLE = "_ADAMAS_COMPLETE"  # the scripts call the command with it


def command(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell that will run it.")],
) -> None:
    """Print the script that completes commands, flags and their values in a shell."""
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="adamas", complete_var=_VARIABLE, shell=shell))


def prepare(environment: Mapping[str, str]) -> None:
    """Answer a shell's request for completions, if there is one."""
    if _VARIABLE in environment:
        from typer.completion import completion_init

        completion_init()
