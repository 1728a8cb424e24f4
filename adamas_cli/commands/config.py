"""`adamas config`: the settings in effect and where they come from, and a file to change them in."""

from __future__ import annotations

import json
import sys
import textwrap
from itertools import groupby
from typing import Annotated, Any

import typer

from adamas_cli.commands.settings import Setting, settings
from adamas_cli.commands.shared import AsJson, print_json
from adamas_cli.config import config_path
from adamas_cli.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Show and change the settings that every command starts with.",
)

_WIDTH = 100  # columns of the file's comments


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Show every setting, and whether its default, the file or the environment sets it."""
    found = settings()
    path = config_path()
    if as_json:
        shown = {
            setting.name: {"value": setting.value, "default": setting.default, "source": setting.source}
            for setting in found
        }
        print_json({"path": str(path), "exists": path.exists(), "settings": shown})
        return
    rows = [("SETTING", "VALUE", "FROM")] + [
        (setting.name, _toml(setting.value) or "-", _source(setting)) for setting in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, source in rows:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")
    if not path.exists():
        print(f"{path} does not exist: `adamas config init` writes it", file=sys.stderr)


@app.command("path")
def path() -> None:
    """Print the path of the configuration file."""
    print(config_path())


@app.command("init")
def init(
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a configuration file that holds every setting as a comment."""
    from adamas_cli.output import replacing

    path = config_path()
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force overwrites it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    with replacing(path) as stream:
        stream.write(_template())
    print(path)


def _source(setting: Setting) -> str:
    return f"{setting.source} {setting.variable}" if setting.source == "environment" else setting.source


def _template() -> str:
    lines = [
        "# Settings of adamas. Flags override the environment, which overrides this file.",
        "# Remove the # before a name to set it. `adamas config show` lists the settings in effect.",
    ]
    for group, members in groupby(settings(configured=False), key=lambda setting: setting.group):
        lines += ["", f"## {group}"]
        for setting in members:
            told = f"{setting.flag}: {' '.join(setting.help.split())}"
            lines += ["", *textwrap.wrap(told, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
            value = _toml(setting.default)
            lines.append(f"#{setting.name} = {value or ' # not set by default'}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value in TOML; empty for one that is not set."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
