"""The exceptions that a user sees. Each kind has one exit code and carries its numbers for JSON."""

from __future__ import annotations

import errno
import sys

from adamas_cli.sanitize import plain

INTERRUPTED = 130  # a shell's exit code for a process that Ctrl-C ended
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


class AdamasError(Exception):
    """An error for the user: the message says what happened and what to do about it. It names settings
    between backticks, as `ctx_size`; a command shows their flags instead.

    `details` are JSON values (such as `n_prompt_tokens`) that accompany the message.
    """

    exit_code = 1
    kind = "failure"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def as_json(self) -> dict[str, object]:
        """The error as a JSON object."""
        return {"type": self.kind, "message": self.message, "exit_code": self.exit_code, **self.details}


class UsageError(AdamasError):
    """The request is wrong: an unknown name, a value out of range, conflicting settings."""

    exit_code = 2
    kind = "usage"


class NothingReadableError(AdamasError):
    """No document remained after walking, ignoring and decoding."""

    exit_code = 3
    kind = "nothing_readable"


class OverContextError(AdamasError):
    """The prompt and the answer do not fit the model's context, or the caller's token budget."""

    exit_code = 4
    kind = "over_context"


class ModelUnavailableError(AdamasError):
    """The model cannot be used: not found, gated, offline, damaged or of an unsupported kind."""

    exit_code = 5
    kind = "model_unavailable"


class NotFiniteError(ModelUnavailableError):
    """The model's output is not a number."""

    def __init__(self) -> None:
        super().__init__(
            "the model's numbers are not finite: its weights are damaged, or too large for its number "
            "format.\nFetch the model again, or use `dtype` float32."
        )


class OutOfMemoryError(AdamasError):
    """The device ran out of memory even with the smallest prefill chunk."""

    exit_code = 6
    kind = "out_of_memory"


class RankLostError(AdamasError):
    """A process that computes a part of the model has ended."""

    exit_code = 7
    kind = "rank_lost"


def as_user_error(error: Exception) -> AdamasError:
    """The error to show for any exception: itself if it was written for users, else a line that names it."""
    if isinstance(error, AdamasError):
        return error
    if _is_out_of_memory(error):
        return OutOfMemoryError(
            f"out of memory: {_first_line(error)}\n"
            "try a smaller `prefill_chunk`, a smaller model, `dtype` bfloat16, or fewer documents"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f" ({plain(str(error.filename))})" if error.filename else ""
        return AdamasError(f"{error.strerror}{where}")
    return AdamasError(
        f"{type(error).__name__}: {_first_line(error)}\nthis is a bug in adamas; -vv shows where"
    )


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator has no exception type of its own
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no details")
