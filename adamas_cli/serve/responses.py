"""Answers in the form of OpenAI's /v1/responses."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator

from adamas_cli.engine.events import Prefill
from adamas_cli.serve.reply import Reply, Said

Json = dict[str, object]


class Responses:
    """One answer. model: its name."""

    def __init__(self, model: str) -> None:
        self._id, self._item = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        self._model, self._created = model, int(time.time())
        self._number = 0  # of the next event

    def whole(self, reply: Reply) -> Json:
        """The answer as one object."""
        cut = reply.reason == "length"
        return self._object(reply, "incomplete" if cut else "completed", self._output(reply)) | {
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": reply.prompt_tokens,
                "input_tokens_details": {"cached_tokens": reply.cached},
                "output_tokens": reply.tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": reply.prompt_tokens + reply.tokens,
            },
            **({} if (sources := reply.sources()) is None else {"sources": sources}),
        }

    async def events(self, reply: Reply, pieces: AsyncIterator[Said | Prefill]) -> AsyncIterator[Json | None]:
        """The answer as events, each with its type and number; None when there is nothing to send."""
        begun = self._object(reply, "in_progress", [])
        place: Json = {"output_index": 0, "item_id": self._item, "content_index": 0}
        empty = _part("")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = self._message(empty, "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=empty)
        async for piece in pieces:
            if isinstance(piece, Said) and not piece.reasoning:
                logprobs = reply.logprobs(piece.tokens) or []
                yield self._event("response.output_text.delta", **place, delta=piece.text, logprobs=logprobs)
            else:
                yield None
        part = _part(reply.text, reply.logprobs(reply.spelled))
        yield self._event("response.output_text.done", **place, text=reply.text, logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **place, part=part)
        done = self._message(part, "completed")
        yield self._event("response.output_item.done", output_index=0, item=done)
        whole = self.whole(reply)
        yield self._event(f"response.{whole['status']}", response=whole)

    def _object(self, reply: Reply, status: str, output: list[Json]) -> Json:
        asked = reply.prepared.asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.system,
            "max_output_tokens": reply.prepared.max_tokens,
            "model": self._model,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": asked.sampling.temperature,
            "top_p": asked.sampling.top_p,
            "tool_choice": "none",
            "tools": [],
            "metadata": {},
            "usage": None,
        }

    def _output(self, reply: Reply) -> list[Json]:
        status = "incomplete" if reply.reason == "length" else "completed"
        message = self._message(_part(reply.text.rstrip(), reply.logprobs(reply.spelled)), status)
        if not reply.reasoning:
            return [message]
        thought = {"type": "reasoning_text", "text": reply.reasoning.rstrip()}
        identity = self._item.replace("msg", "rs", 1)
        return [{"type": "reasoning", "id": identity, "summary": [], "content": [thought]}, message]

    def _message(self, part: Json, status: str) -> Json:
        return {
            "type": "message",
            "id": self._item,
            "role": "assistant",
            "status": status,
            "content": [part],
        }

    def _event(self, kind: str, **more: object) -> Json:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **more}


def _part(text: str, logprobs: list[Json] | None = None) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}
