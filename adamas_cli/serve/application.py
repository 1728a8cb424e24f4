"""The routes of the server."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError
from adamas_cli.serve import requests
from adamas_cli.serve.answering import Answering
from adamas_cli.serve.chat_completions import ChatCompletions
from adamas_cli.serve.errors import ApiError, as_api_error, wrong
from adamas_cli.serve.guard import Guard
from adamas_cli.serve.likelihoods import Spelling
from adamas_cli.serve.metrics import Metrics
from adamas_cli.serve.reply import Reply
from adamas_cli.serve.requests import Asked
from adamas_cli.serve.responses import Responses
from adamas_cli.serve.worker import Job, Worker

# What the page may do: load nothing from elsewhere, send nothing elsewhere.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
_CODES = {404: "not_found", 405: "method_not_allowed"}
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Form = type[ChatCompletions] | type[Responses]
log = logging.getLogger(__name__)


@dataclass
class Service:
    """State shared by the routes. sampling: default for requests. timeout: seconds from a request's arrival
    to its last token. created: server start, in seconds since 1970. model: its name.
    """

    answering: Answering
    worker: Worker
    metrics: Metrics
    sampling: Sampling
    timeout: float
    created: int
    model: str

    async def page(self, request: Request) -> Response:
        """The web page for people."""
        text = importlib.resources.files("adamas_cli.serve").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    async def health(self, request: Request) -> Response:
        """Whether the server answers, and how busy it is."""
        worker = self.worker
        return JSONResponse({"status": "ok", "active": worker.active, "waiting": worker.waiting})

    async def counts(self, request: Request) -> Response:
        """Metrics for Prometheus."""
        return Response(self.metrics.text(), media_type=_PROMETHEUS)

    async def models(self, request: Request) -> Response:
        """The served model."""
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model_named(self, request: Request) -> Response:
        """The served model, if it has this name."""
        self._require_model(request.path_params["name"])
        return JSONResponse(self._described())

    async def files(self, request: Request) -> Response:
        """All documents."""
        entries = self.answering.library.entries()
        return JSONResponse({"object": "list", "data": [entry.as_json() for entry in entries]})

    async def upload(self, request: Request) -> Response:
        """Store an uploaded document."""
        async with request.form(max_files=1) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise wrong("file is a file", "file")
            data = await file.read(self.answering.library.largest + 1)
            name = file.filename or ""
        kept = purpose if isinstance(purpose, str) else "user_data"
        entry = await run_in_threadpool(self.answering.library.add, name, data, kept)
        return JSONResponse(entry.as_json())

    async def file(self, request: Request) -> Response:
        """A document's file object."""
        return JSONResponse(self.answering.library[request.path_params["id"]].as_json())

    async def content(self, request: Request) -> Response:
        """A document as the model reads it; for an archive, the document at path `document`."""
        entry = self.answering.library[request.path_params["id"]]
        path = request.query_params.get("document", entry.documents[0].path)
        document = next((d for d in entry.documents if d.path == path), None)
        if document is None:
            raise ApiError(404, "there is no such document in the file", "document_not_found")
        text = await run_in_threadpool(lambda: "".join(document.pieces()))
        return PlainTextResponse(text.encode("utf-8", "replace"))

    async def remove(self, request: Request) -> Response:
        """Forget an upload."""
        identity = request.path_params["id"]
        await run_in_threadpool(self.answering.library.remove, identity)
        return JSONResponse({"id": identity, "object": "file", "deleted": True})

    async def answer(
        self, request: Request, read: Callable[[requests.Json, Sampling], Asked], form: Form
    ) -> Response:
        """Answer a request in one of the two forms."""
        asked = read(await _body(request), self.sampling)
        if asked.model is not None:
            self._require_model(asked.model)
        prepared = await run_in_threadpool(self.answering.prepare, asked)
        reply, shape = Reply(prepared, self._spelling(asked)), form(self.model)
        job = self.worker.submit(partial(self.answering.answer, prepared))
        if asked.stream:
            headers = {"Cache-Control": "no-store"}
            stream = self._streamed(job, reply, shape)
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        leaving = asyncio.create_task(_left(request, job))
        try:
            with self._limited(job, reply):
                async for _ in reply.follow(job.events()):
                    pass
        finally:
            leaving.cancel()
        return JSONResponse(shape.whole(reply))

    async def _streamed(
        self, job: Job, reply: Reply, shape: ChatCompletions | Responses
    ) -> AsyncIterator[str]:
        """The answer as server-sent events; a comment while there is nothing to send."""
        with self._limited(job, reply):
            try:
                async for event in shape.events(reply, reply.follow(job.events())):
                    yield _sent(event)
            except Exception as error:
                _log(error)
                told = as_api_error(error).as_json()
                if isinstance(shape, Responses):
                    told = {**told["error"], "type": "error"}  # type: ignore[dict-item]
                yield _sent(told)
            if isinstance(shape, ChatCompletions):
                yield "data: [DONE]\n\n"

    @contextmanager
    def _limited(self, job: Job, reply: Reply) -> Iterator[None]:
        """A scope after which the job is ended and counted; it also ends when its time is up."""
        late = ApiError(504, f"the answer took longer than {self.timeout:g} s", "timeout")
        timer = asyncio.get_running_loop().call_later(self.timeout, job.cancel, late)
        try:
            yield
        finally:
            timer.cancel()
            job.cancel()
            self.metrics.count_reply(reply)

    def _spelling(self, asked: Asked) -> Spelling | None:
        """What finds an answer's tokens, if their log-probabilities are requested."""
        asks = asked.sampling.alternatives() is not None
        return Spelling(self.answering.runtime.tokenizer) if asks else None

    def _described(self) -> dict[str, object]:
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "adamas",
            "context_length": self.answering.runtime.context,
        }

    def _require_model(self, name: str) -> None:
        if name != self.model:
            message = f"there is no model {name!r} here; it is {self.model!r}"
            raise ApiError(404, message, "model_not_found", param="model")


def application(service: Service, key: str | None) -> Starlette:
    """The server as an ASGI application. key: see `Guard`."""
    ask = requests.chat_completion, ChatCompletions
    respond = requests.response, Responses
    routes: list[tuple[str, str, Callable[[Request], Any]]] = [
        ("GET", "/", service.page),
        ("GET", "/health", service.health),
        ("GET", "/metrics", service.counts),
        ("GET", "/v1/models", service.models),
        ("GET", "/v1/models/{name:path}", service.model_named),
        ("GET", "/v1/files", service.files),
        ("POST", "/v1/files", service.upload),
        ("GET", "/v1/files/{id}", service.file),
        ("DELETE", "/v1/files/{id}", service.remove),
        ("GET", "/v1/files/{id}/content", service.content),
        ("POST", "/v1/chat/completions", lambda request: service.answer(request, *ask)),
        ("POST", "/v1/responses", lambda request: service.answer(request, *respond)),
    ]
    largest = service.answering.library.largest
    return Starlette(
        routes=[Route(path, _endpoint(handler), methods=[method]) for method, path, handler in routes],
        middleware=[Middleware(Guard, key=key, largest=largest, count=service.metrics.count_request)],
        exception_handlers=dict.fromkeys((ApiError, AdamasError, HTTPException, Exception), _told),
    )


def _endpoint(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        response: Response = await handler(request)
        return response

    return endpoint


def _sent(event: dict[str, object] | None) -> str:
    """An event as the server sends it; a comment for None."""
    if event is None:
        return ": reading\n\n"
    kind = f"event: {event['type']}\n" if "type" in event else ""
    return f"{kind}data: {json.dumps(event, ensure_ascii=False)}\n\n"


async def _body(request: Request) -> requests.Json:
    """Raises ApiError for a body that is not a JSON object or not declared as JSON."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise ApiError(415, "the body is JSON: Content-Type: application/json", "not_json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", "not_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not an object", "not_json")
    return body


async def _left(request: Request, job: Job) -> None:
    """Cancel a job once its client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _told(request: Request, error: Exception) -> Response:
    """An error as a response."""
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, error.detail, _CODES.get(error.status_code, "bad_request"))
    _log(error)
    shown = as_api_error(error)
    return JSONResponse(shown.as_json(), shown.status, shown.headers)


def _log(error: Exception) -> None:
    if as_api_error(error).status == 500:
        log.error("a request failed", exc_info=error)
