"""Shared by commands about files on disk: JSON, sizes, and confirmation before removal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.planning.fitting import Fit

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask first.")]


def confirm_removal(what: str, question: str) -> None:
    """Ask before `what` is removed. Raises UsageError if nobody can be asked, typer.Abort at a no."""
    if not sys.stdin.isatty():
        raise UsageError(f"pass -y to remove {what} without being asked.")
    typer.confirm(question, abort=True, err=True)


def megabytes(count: int) -> str:
    """Bytes in the form `491 MB`."""
    return f"{count / 1e6:,.0f} MB"


def told(fit: Fit) -> str:
    """How much of a model's context fits the memory."""
    if fit.largest == fit.context:
        return "whole"
    return f"{fit.largest:,} tokens" if fit.largest else "no"


def print_json(value: object) -> None:
    """Print indented JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
