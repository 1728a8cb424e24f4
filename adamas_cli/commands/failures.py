"""Turns any exception into the one or two lines, the JSON object and the exit code that a user gets."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import traceback

from adamas_cli.errors import INTERRUPTED, AdamasError, OutOfMemoryError
from adamas_cli.sanitize import plain
from adamas_cli.terminal.spelling import spelled

# Errors of a disk or of permissions, not of the program.
_OF_THE_MACHINE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EMFILE,
)
CLOSED_PIPE = 141  # a shell's exit code for a process that SIGPIPE ended


class InterruptedByUserError(AdamasError):
    """Ctrl-C."""

    exit_code = INTERRUPTED
    kind = "interrupted"


def as_user_error(error: Exception) -> AdamasError:
    """The error to show for any exception: itself if it was written for users, else a line that names it."""
    if isinstance(error, AdamasError):
        return error
    if _is_out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory: {_first_line(error)}\n"
            "try a smaller --prefill-chunk, a smaller model, --dtype bfloat16, or fewer documents"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f" ({plain(str(error.filename))})" if error.filename else ""
        return AdamasError(f"{error.strerror}{where}")
    return AdamasError(
        f"{type(error).__name__}: {_first_line(error)}\nthis is a bug in adamas; -vv shows where"
    )


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


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator has no exception type of its own
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no details")
