"""Answers in the form of OpenAI's /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable

from adamas_cli.engine.events import Prefill
from adamas_cli.serve.likelihoods import Spelled
from adamas_cli.serve.reply import Reply, Said

Json = dict[str, object]


class ChatCompletions:
    """One answer. model: its name."""

    def __init__(self, model: str) -> None:
        self._head: Json = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, reply: Reply) -> Json:
        """The answer as one object."""
        message: Json = {"role": "assistant", "content": reply.text.rstrip(), "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning.rstrip()
        choice = {"index": 0, "message": message, "finish_reason": reply.reason}
        choice["logprobs"] = _logprobs(reply, reply.spelled)
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(reply),
            **_more(reply),
        }

    async def events(self, reply: Reply, pieces: AsyncIterator[Said | Prefill]) -> AsyncIterator[Json | None]:
        """The answer as chunks; None where there is nothing to send while the prompt is read."""
        asked = reply.prepared.asked
        yield self._chunk({"role": "assistant", "content": ""})
        async for piece in pieces:
            if isinstance(piece, Prefill):
                yield self._chunk(None) | {"progress": progress(piece)} if asked.progress else None
            else:
                delta: Json = {"reasoning_content" if piece.reasoning else "content": piece.text}
                yield self._chunk(delta, logprobs=_logprobs(reply, piece.tokens))
        yield self._chunk({}, reply.reason) | _more(reply)
        if asked.usage:
            yield self._chunk(None) | {"usage": usage(reply)}

    def _chunk(self, delta: Json | None, reason: str | None = None, logprobs: Json | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return self._head | {
            "object": "chat.completion.chunk",
            "choices": [] if delta is None else [choice],
        }


def usage(reply: Reply) -> Json:
    """Token counts, as OpenAI reports them."""
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.prompt_tokens + reply.tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached},
    }


def progress(event: Prefill) -> Json:
    """Progress of reading a prompt, in tokens."""
    return {"read": event.done, "total": event.total, "remaining_seconds": event.remaining_seconds}


def _logprobs(reply: Reply, tokens: Iterable[Spelled]) -> Json | None:
    content = reply.logprobs(tokens)
    return None if content is None else {"content": content, "refusal": None}


def _more(reply: Reply) -> Json:
    """Fields that OpenAI's form does not have."""
    more: Json = {}
    if (sources := reply.sources()) is not None:
        more["sources"] = sources
    if reply.notes:
        more["notes"] = reply.notes
    return more
