"""Clients' requests in OpenAI's two forms, read into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adamas_cli.engine.sampling import GuidedSampling, Sampling
from adamas_cli.serve import parameters
from adamas_cli.serve.errors import unsupported, wrong
from adamas_cli.settings import MOST_SOURCES

Json = Mapping[str, Any]
MOST_STOPS = 4
MOST_TEMPERATURE = 2
MOST_LOGPROBS = 20  # alternatives to a token
INCLUDED_LOGPROBS = "message.output_text.logprobs"

_INSTRUCTING = ("system", "developer")
_SPEAKING = ("user", "assistant")
_TEXTS, _FILES = ("text", "input_text", "output_text"), ("file", "input_file")


@dataclass(frozen=True)
class Message:
    """A message of one side, with the ids of its files."""

    role: str
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request. messages: alternating between user and assistant, the user's first and last. files: added to
    those of the first message; None if the request names none. max_tokens: of the answer, None for the
    server's default. schema: that the answer must satisfy. sources: number of passages to report. stream:
    events instead of one object; with `usage` and `progress` among them.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    system: str | None = None
    files: tuple[str, ...] | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    schema: Json | None = None
    sources: int = 0
    stream: bool = False
    usage: bool = False
    progress: bool = False
    model: str | None = None

    @property
    def names_files(self) -> bool:
        """Whether it says which documents it is about."""
        return self.files is not None or any(message.files for message in self.messages)


def chat_completion(body: Json, sampling: Sampling) -> Asked:
    """A request to /v1/chat/completions. sampling: the defaults. Raises ApiError."""
    parameters.check(body, parameters.CHAT)
    messages = _listed(body, "messages")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(x, str) and x for x in stops)
    ):
        raise wrong(f"stop is a text or a list of up to {MOST_STOPS}", "stop")
    form = _object(body, "response_format")
    return _asked(
        body,
        sampling,
        messages=[_message(entry, "messages") for entry in messages],
        instructions=[],
        max_tokens=_number(body, limit, int, least=1),
        stop=tuple(stops),
        schema=_schema(form, _object(form, "json_schema"), "response_format"),
        logprobs=_flag(body, "logprobs"),
        param="messages",
    )


def response(body: Json, sampling: Sampling) -> Asked:
    """A request to /v1/responses; see `chat_completion`."""
    parameters.check(body, parameters.RESPONSE)
    include = body.get("include") or []
    if not isinstance(include, list) or any(name != INCLUDED_LOGPROBS for name in include):
        raise unsupported(f"include is a list of what there is: {INCLUDED_LOGPROBS}", "include")
    given = body.get("input")
    if isinstance(given, str):
        messages = [Message("user", given)]
    else:
        items = [item for item in _listed(body, "input") if _kind(item) in ("message", None)]
        messages = [_message(item, "input") for item in items]
    form = _object(_object(body, "text"), "format")
    instructions = body.get("instructions")
    return _asked(
        body,
        sampling,
        messages=messages,
        instructions=[_text(instructions, "instructions")] if instructions else [],
        max_tokens=_number(body, "max_output_tokens", int, least=1),
        stop=(),
        schema=_schema(form, form, "text"),
        logprobs=bool(include),
        param="input",
    )


def _asked(
    body: Json,
    sampling: Sampling,
    *,
    messages: Sequence[Message],
    instructions: Sequence[str],
    max_tokens: int | None,
    stop: tuple[str, ...],
    schema: Json | None,
    logprobs: bool,
    param: str,
) -> Asked:
    system = [*instructions, *(m.text for m in messages if m.role in _INSTRUCTING)]
    spoken = tuple(_joined([m for m in messages if m.role in _SPEAKING]))
    if not spoken or spoken[0].role != "user" or spoken[-1].role != "user":
        raise wrong("the first and the last message must be the user's", param)
    if not spoken[-1].text.strip():
        raise wrong("the question is empty", param)
    files = body.get("files")
    if files is not None and not (isinstance(files, list) and all(isinstance(x, str) for x in files)):
        raise wrong("files is a list of ids", "files")
    options = _object(body, "stream_options")
    model = body.get("model")
    return Asked(
        spoken,
        _sampled(body, sampling, logprobs=logprobs),
        system="\n\n".join(system) or None,
        files=None if files is None else tuple(files),
        max_tokens=max_tokens,
        stop=stop,
        schema=schema,
        sources=min(_number(body, "sources", int, least=0) or 0, MOST_SOURCES),
        stream=_flag(body, "stream"),
        usage=options.get("include_usage") is True,
        progress=options.get("include_progress") is True,
        model=None if model is None else _text(model, "model"),
    )


def _sampled(body: Json, sampling: Sampling, *, logprobs: bool) -> Sampling:
    temperature = _number(body, "temperature", float, least=0, most=MOST_TEMPERATURE)
    top_p = _number(body, "top_p", float, least=0)
    seed = _number(body, "seed", int, least=-(1 << 63), most=(1 << 63) - 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise wrong("top_p is above 0 and at most 1", "top_p")
    top_k = _number(body, "top_k", int, least=0)
    min_p = _number(body, "min_p", float, least=0, most=1)
    chosen = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
    sampling = replace(sampling, **{name: value for name, value in chosen.items() if value is not None})
    top = _number(body, "top_logprobs", int, least=0, most=MOST_LOGPROBS)
    if top and not logprobs:
        raise wrong("top_logprobs needs logprobs", "top_logprobs")
    return GuidedSampling.of(sampling, top=top or 0) if logprobs else sampling


def _message(entry: object, param: str) -> Message:
    if not isinstance(entry, Mapping) or entry.get("role") not in (*_INSTRUCTING, *_SPEAKING):
        raise unsupported("each message has the role system, developer, user or assistant", param)
    content = entry.get("content")
    if isinstance(content, str):
        return Message(entry["role"], content)
    if not isinstance(content, list):
        raise wrong("a message's content is a text or a list of parts", param)
    texts, files = [], []
    for part in content:
        if _kind(part) in _TEXTS:
            texts.append(_text(part.get("text"), param))
        elif _kind(part) in _FILES:
            file = _object(part, "file") or part
            files.append(_text(file.get("file_id"), param))
        else:
            raise unsupported("a message's parts are texts, and files by their id", param)
    return Message(entry["role"], "\n\n".join(texts), tuple(files))


def _joined(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, with consecutive ones of one side merged."""
    last: Message | None = None
    for message in messages:
        if last is not None and last.role == message.role:
            last = Message(last.role, f"{last.text}\n\n{message.text}", last.files + message.files)
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def _schema(form: Json, holder: Json, param: str) -> Json | None:
    """The JSON schema that an answer must satisfy. holder: the object that has it, if the form is one."""
    match form.get("type"):
        case None | "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema" if isinstance(holder.get("schema"), Mapping):
            schema: Json = holder["schema"]
            return schema
    raise wrong("the format is text, json_object, or json_schema with its schema", param)


def _listed(body: Json, name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list) or not value:
        raise wrong(f"{name} is a list that is not empty", name)
    return value


def _object(body: Json, name: str) -> Json:
    value = body.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise wrong(f"{name} is an object", name)
    return value or {}


def _text(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise wrong(f"{param} holds something else than a text", param)
    return value


def _kind(part: object) -> str | None:
    return part.get("type") if isinstance(part, Mapping) else ""


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise wrong(f"{name} is true or false", name)
    return value is True


def _number(
    body: Json, name: str, kind: type, *, least: float | None = None, most: float | None = None
) -> Any:
    value = body.get(name)
    if value is None:
        return None
    fits = isinstance(value, (int, kind)) and not isinstance(value, bool)
    fits = fits and (least is None or value >= least) and (most is None or value <= most)
    if not fits:
        limits = [] if least is None else [f"at least {least}"]
        limits += [] if most is None else [f"at most {most}"]
        raise wrong(f"{name} is a number" + (f", {' and '.join(limits)}" if limits else ""), name)
    return kind(value)
