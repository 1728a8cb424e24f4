"""Shows an error: one or two lines, the JSON object and the exit code that a user gets."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback

from adamas_cli.errors import INTERRUPTED, AdamasError
from adamas_cli.sanitize import plain
from adamas_cli.terminal.spelling import spelled

CLOSED_PIPE = 141  # a shell's exit code for a process that SIGPIPE ended


class InterruptedByUserError(AdamasError):
    """Ctrl-C."""

    exit_code = INTERRUPTED
    kind = "interrupted"


def report(error: AdamasError, *, as_json: bool = False) -> int:
    """Report an error on stderr, and with `as_json` also as an object on stdout; return the exit code."""
    if logging.getLogger("adamas_cli").isEnabledFor(logging.DEBUG):
        shown = error.__cause__ if type(error) is AdamasError and error.__cause__ else error
        traceback.print_exception(shown, file=sys.stderr)
    print(f"adamas: {plain(spelled(error.message))}", file=sys.stderr)
    if as_json:
        print(spelled(json.dumps({"error": error.as_json()}, ensure_ascii=False)))
    return error.exit_code


def abandon_stdout() -> int:
    """Make the interpreter end quietly after the reader closed the pipe; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE
