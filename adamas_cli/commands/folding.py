"""Help in two lengths: `--help` shows the common flags, `--help-all` all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from adamas_cli.commands.options import all_names

# Settings in every help; flags of only one command are always shown.
COMMON = frozenset(
    {
        "max_tokens", "on_overflow", "token_budget", "think", "model", "device", "offline", "attn", "budget",
        "include", "exclude", "sources", "cite", "no_doc_cache", "output", "json", "quiet", "verbose",
    }
)  # fmt: skip
_ALL = f"{__name__}.all"  # key in a context: show every flag


class FoldedCommand(TyperCommand):
    """A command whose `--help` leaves out the settings that are not COMMON."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; completion still knows every flag."""
        rare: list[Any] = [option for option in self.params if option.name in all_names() - COMMON]
        for option in rare:
            option.hidden = _ALL not in ctx.meta
        try:
            super().format_help(ctx, formatter)
        finally:
            for option in rare:
                option.hidden = False


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        ctx.command.format_help(ctx, ctx.make_formatter())
        raise typer.Exit


HELP_ALL = typer.Option(
    "--help-all", is_eager=True, callback=_show_all, help="Show this message with every flag."
)


def register(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Add a command to `app`; one that takes settings gets a short and a full help."""
    own = inspect.signature(function)
    if not all_names() & set(own.parameters):
        app.command(name)(function)
        return
    last = inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, HELP_ALL]
    )

    def command(*, help_all: bool, **values: Any) -> None:
        function(**values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {**function.__annotations__, "help_all": last.annotation}
    command.__signature__ = own.replace(parameters=[*own.parameters.values(), last])  # type: ignore[attr-defined]
    app.command(name, cls=FoldedCommand)(command)
