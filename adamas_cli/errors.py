"""The exceptions that a user sees. Each kind has one exit code and carries its numbers for JSON."""

from __future__ import annotations

INTERRUPTED = 130  # a shell's exit code for a process that Ctrl-C ended


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
