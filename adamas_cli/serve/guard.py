"""Who may send requests, and how large: checked before any route sees a request."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adamas_cli.serve.errors import ApiError

OPEN = ("/", "/health")  # paths that need no key, since they reveal nothing
LOCAL = ("localhost", "127.0.0.1", "::1")
LARGEST_REQUEST = 32 << 20  # bytes of JSON
AROUND_UPLOAD = 1 << 20  # bytes of a form in addition to its file


def is_local(host: str) -> bool:
    """Whether a server bound to this address is reachable only from this machine."""
    return host in LOCAL


class Guard:
    """key: required in requests; None for a server bound to this machine only. Then requests must name it as
    in `LOCAL`, so that no page of another site can pass for this server's. largest: bytes of an upload.
    count: called with the path and status of each response.
    """

    def __init__(
        self, app: ASGIApp, key: str | None, largest: int, count: Callable[[str, int], None]
    ) -> None:
        self._app, self._key, self._count = app, key, count
        self._largest = max(LARGEST_REQUEST, largest + AROUND_UPLOAD)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._count(getattr(route, "path", "other"), message["status"])
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            response = JSONResponse(error.as_json(), error.status, error.headers)
            await response(scope, receive, counted)
            return
        await self._app(scope, self._limited(receive), counted)

    def _check(self, path: str, headers: Headers) -> None:
        """Raises ApiError for a request that must not be served."""
        host = headers.get("host", "")
        if self._key is None and urlsplit(f"//{host}").hostname not in LOCAL:
            raise ApiError(403, "this server is for this machine alone", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "pages of other sites may not ask here", "wrong_origin")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._largest:
            raise self._too_large()
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self._key is None or path in OPEN:
            return
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise ApiError(401, "give the server's key: Authorization: Bearer KEY", "invalid_api_key")

    def _limited(self, receive: Receive) -> Receive:
        """The same receiver; it raises ApiError once a body is too large."""
        total = 0

        async def limited() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._largest:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request has at most {self._largest:,} bytes", "request_too_large")
