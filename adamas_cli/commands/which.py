"""Ask, on a terminal, which of a model's several files to use."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import typer

from adamas_cli.models.aliases import aliases
from adamas_cli.models.folder import missing
from adamas_cli.models.quantizations import SeveralFilesError, gigabytes
from adamas_cli.models.stores import file_in_folder, file_in_hub_cache
from adamas_cli.sanitize import plain
from adamas_cli.settings import ModelSettings


def one_file(model: ModelSettings) -> ModelSettings:
    """The settings with the name of a single file, if the given name has several and a user can be asked.
    Other names are left to the model's lookup, which needs the hub for some of them.
    """
    name = model.model
    if name is None or name in aliases() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return model
    try:
        _require_one(name)
    except SeveralFilesError as several:
        return replace(model, model=_asked(name, several))
    return model


def _require_one(name: str) -> None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if missing(folder) is not None:
            file_in_folder(folder, name)
    elif name.count("/") == 1 and not os.path.isabs(name):
        repository, _, tag = name.partition(":")
        file_in_hub_cache(repository, tag)


def _asked(name: str, several: SeveralFilesError) -> str:
    print(f"{plain(name)} holds several models:", file=sys.stderr)
    for number, choice in enumerate(several.choices, 1):
        print(f"{number:3}  {plain(choice.name)}  ({gigabytes(choice.bytes)})", file=sys.stderr)

    def chosen(answer: str) -> str:
        if answer.isdecimal() and 1 <= int(answer) <= len(several.choices):
            return several.choices[int(answer) - 1].name
        raise typer.BadParameter(f"give a number from 1 to {len(several.choices)}")

    return str(typer.prompt("Which one", value_proc=chosen, err=True))
