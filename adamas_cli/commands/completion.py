"""`adamas completion`: what a shell needs to complete commands, flags and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import typer

_VARIABLE = "_ADAMAS_COMPLETE"  # by which those scripts ask the command itself


def command(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell that will read it.")],
) -> None:
    """Print the script that completes commands, flags and their values in a shell."""
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="adamas", complete_var=_VARIABLE, shell=shell))


def prepare(environment: Mapping[str, str]) -> None:
    """Be ready to answer a shell, if one asks."""
    if _VARIABLE in environment:
        from typer.completion import completion_init

        completion_init()
