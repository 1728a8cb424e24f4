"""Help in two lengths: `--help` shows the flags that most questions need, `--help-all` all of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

# Settings that every help shows; what belongs to one command alone is always shown.
COMMON = frozenset(
    {
        "max_tokens", "on_overflow", "token_budget", "think", "model", "device", "offline", "attn", "budget",
        "include", "exclude", "sources", "cite", "no_doc_cache", "output", "json", "quiet", "verbose",
    }
)  # fmt: skip
_ALL = f"{__name__}.all"  # in a context: that nothing is folded


class FoldedCommand(TyperCommand):
    """A command whose `--help` leaves out the settings that are not COMMON."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; completion still knows every flag."""
        from adamas_cli.commands.options import all_names

        rare: list[Any] = (
            [] if _ALL in ctx.meta else [x for x in self.params if x.name in all_names() - COMMON]
        )
        for option in rare:
            option.hidden = True
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


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all",
        is_eager=True,
        callback=_show_all,
        help="Show this message with every flag.",
    ),
]
