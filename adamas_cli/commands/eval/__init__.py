"""`adamas eval`: is the sparse answer as good as the full one? Measured on the user's model and text."""

from __future__ import annotations

import typer

from adamas_cli.commands.eval import answers, ppl, retrieval
from adamas_cli.commands.folding import register

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare sparse with full attention on a model and text of yours.",
)
register(app, "ppl", ppl.command)
register(app, "retrieval", retrieval.command)
register(app, "answers", answers.command)
