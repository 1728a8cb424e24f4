"""Errors that clients get, as OpenAI's error objects."""

from __future__ import annotations

from adamas_cli.errors import (
    AdamasError,
    NothingReadableError,
    OutOfMemoryError,
    OverContextError,
    UsageError,
)

# HTTP status of each kind of error that a request may cause; any other is the server's fault.
_STATUS: dict[type[AdamasError], int] = {
    UsageError: 400,
    NothingReadableError: 400,
    OverContextError: 400,
    OutOfMemoryError: 503,
}
_CODES = {"over_context": "context_length_exceeded"}  # where OpenAI's name differs


class ApiError(Exception):
    """A refused request. status: of HTTP. code: the reason in one word. param: the wrong field of the
    request. headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def as_json(self) -> dict[str, object]:
        """The body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class BusyError(ApiError):
    """The queue of waiting requests is full."""

    def __init__(self, retry_after: int) -> None:
        message = "too many requests are waiting; try again later"
        super().__init__(429, message, "rate_limit_exceeded", headers={"Retry-After": str(retry_after)})


class StoppingError(ApiError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping", "stopping")


def wrong(message: str, param: str) -> ApiError:
    """A field of a request has an invalid value."""
    return ApiError(400, message, "invalid_value", param=param)


def unsupported(message: str, param: str) -> ApiError:
    """A field of a request asks for something unsupported."""
    return ApiError(400, message, "unsupported_parameter", param=param)


def as_api_error(error: BaseException) -> ApiError:
    """The error that a client gets; without details for a fault of the program."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AdamasError):
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return ApiError(status, error.message, _CODES.get(error.kind, error.kind))
    return ApiError(500, "something went wrong in the server; its log says more", "internal_error")
