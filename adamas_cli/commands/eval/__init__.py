"""`adamas eval`: how close sparse attention is to full attention, on the user's model and text."""

from __future__ import annotations

import typer

from adamas_cli.commands.eval import answers, ppl, retrieval
from adamas_cli.commands.folding import register

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare sparse with full attention on your model and text.",
)
register(app, "ppl", ppl.command)
register(app, "retrieval", retrieval.command)
register(app, "answers", answers.command)
