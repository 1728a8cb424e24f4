"""The settings of all commands with their sources, from the parser that the commands use."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import typer

from adamas_cli.commands.options import FLAGS, flags, setting_names
from adamas_cli.config import read_config

_SOURCES = {"DEFAULT": "default", "DEFAULT_MAP": "file", "ENVIRONMENT": "environment"}


@dataclass(frozen=True)
class Setting:
    """One setting: its name in the configuration file, and the flag that overrides it."""

    name: str
    flag: str
    group: str
    help: str
    default: Any
    value: Any
    source: str  # `default`, `file`, or `environment`
    variable: str | None  # the environment variable that can set it


def settings(*, configured: bool = True) -> list[Setting]:
    """Every setting, in help order. configured: with the values of the file and the environment.

    Raises UsageError for a wrong file, typer's own errors for a wrong value.
    """
    command = _every_flag()
    known = setting_names()
    file = read_config(known) if configured else {}
    context = command.make_context("adamas", [], default_map=file, resilient_parsing=not configured)
    found = []
    for parameter in command.params:
        if parameter.name not in known:
            continue
        source = context.get_parameter_source(parameter.name)
        found.append(
            Setting(
                name=parameter.name,
                flag=max(parameter.opts, key=len),
                group=parameter.rich_help_panel,
                help=parameter.help or "",
                default=parameter.default,
                value=context.params[parameter.name],
                source=_SOURCES[source.name] if configured and source else "default",
                variable=parameter.envvar,
            )
        )
    return found


@cache
def _every_flag() -> Any:
    """typer's own command object, with the flags of all groups."""

    parameters = [parameter for group in FLAGS for parameter in flags(group)]

    def every(**values: Any) -> None:
        """Never called."""

    every.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    every.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(every)
    return typer.main.get_command(app)
