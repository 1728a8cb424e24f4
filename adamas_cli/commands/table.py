"""Every command by name; its module is imported when the command is called, not for the command list."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from adamas_cli.commands.examples import attach
from adamas_cli.commands.folding import register

# The summaries in the command list; a test compares them with the commands' own help.
SUMMARIES = {
    "ask": 'Answer questions about documents: adamas ask book.txt "Who is Mr. Darcy?"',
    "summarize": "Summarize documents and repositories of any length: "
    "adamas summarize book.txt --style bullets",
    "map": 'Ask every question about every document: adamas map contracts/ -q "Who signs?" -o answers.csv',
    "chat": "Talk about documents: adamas chat book.txt",
    "serve": "Answer programs (OpenAI's interface) and browsers: adamas serve book.txt",
    "mcp": "Offer documents to another program as tools, over stdin and stdout: adamas mcp book.txt",
    "plan": "Count tokens, memory and time before a question is asked: adamas plan src/ --tree",
    "read": "Print the text that a model would be given: adamas read report.pdf",
    "bench": "Measure this machine: adamas bench --len 4k,16k, or adamas bench --kernels",
    "eval": "Compare sparse with full attention on your model and text.",
    "models": "List, fetch and remove models.",
    "cache": "List, check and remove documents that were read before.",
    "config": "Show and change the settings that every command starts with.",
    "completion": "Print the script that completes commands, flags and their values in a shell.",
    "doctor": "Check this machine and say how to fix what is wrong; exit with 1 if anything is.",
    "env": "Print versions, devices and variables for a bug report; tokens and passwords are hidden.",
}


class Commands(TyperGroup):
    """The root command. It knows its subcommands by name and summary, and builds the one that is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in SUMMARIES.items()}

    def list_commands(self, ctx: Any) -> list[str]:
        """The subcommands' names in help order."""
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names, and the remaining arguments."""
        if args[0] in SUMMARIES:
            self.commands[args[0]] = build(args[0])
        return super().resolve_command(ctx, args)


def build(name: str) -> Any:
    """The command or group in the module of that name, with the examples in its help."""
    module = import_module(f"adamas_cli.commands.{name}")
    above = typer.Typer()
    if hasattr(module, "app"):
        above.add_typer(module.app, name=name)
    else:
        register(above, name, module.command)
    attach(above)
    return typer.main.get_group(above).commands[name]
