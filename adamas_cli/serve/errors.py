"""What a client is told when something is wrong, as OpenAI's error objects."""

from __future__ import annotations

from adamas_cli.errors import (
    AdamasError,
    NothingReadableError,
    OutOfMemoryError,
    OverContextError,
    UsageError,
)

# HTTP's status of each kind of error that a request may cause; any other is the server's own.
_STATUS: dict[type[AdamasError], int] = {
    UsageError: 400,
    NothingReadableError: 400,
    OverContextError: 400,
    OutOfMemoryError: 503,
}
_CODES = {"over_context": "context_length_exceeded"}  # where OpenAI's name is another one


class ApiError(Exception):
    """A request that is refused. status: of HTTP. code: the reason in one word. param: the field of the
    request that is wrong. headers: of the response.
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
    """As many requests wait as may."""

    def __init__(self, retry_after: int) -> None:
        message = "too many requests are waiting; try again later"
        super().__init__(429, message, "rate_limit_exceeded", headers={"Retry-After": str(retry_after)})


class StoppingError(ApiError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__(503, "the server is stopping", "stopping")


def wrong(message: str, param: str) -> ApiError:
    """A field of a request that holds what it must not."""
    return ApiError(400, message, "invalid_value", param=param)


def unsupported(message: str, param: str) -> ApiError:
    """A field of a request that asks for what there is not."""
    return ApiError(400, message, "unsupported_parameter", param=param)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any error; of a fault of the program, no details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AdamasError):
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return ApiError(status, error.message, _CODES.get(error.kind, error.kind))
    return ApiError(500, "something went wrong in the server; its log says more", "internal_error")
