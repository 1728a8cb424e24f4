"""An answer as text: token events turned into words, and its JSON record."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from adamas_cli.engine.events import Done, Event, Token
from adamas_cli.errors import AdamasError
from adamas_cli.session.listener import Listener
from adamas_cli.sources.passages import Sources
from adamas_cli.sources.quotes import Quote


@dataclass(frozen=True)
class Text:
    """A piece of the model's text; never empty, safe for a terminal."""

    text: str
    reasoning: bool  # a thought, not part of the answer


@dataclass(frozen=True)
class Origins:
    """Where an answer came from; precedes its Done. Fields not asked for are None."""

    sources: Sources | None
    quotes: tuple[Quote, ...] | None


@dataclass(frozen=True)
class Step:
    """Any other event before an answer begins, as of a text that is read in parts."""


@dataclass(frozen=True)
class Called:
    """The model called a tool, though none is offered; precedes the answer's Done."""


Told = Event | Text | Called | Origins | Step
"""An event while a question is answered."""


def narrate(events: Iterable[Event], listener: Listener) -> Iterator[list[Told]]:
    """Each event with what it leads to: a Text after a token that completes one, held-back text before Done.

    They come together, because answers that take turns decode together only if a turn is always one token,
    whether it completes a text or not.
    """
    for event in events:
        told: list[Told] = [event]
        if isinstance(event, Token):
            told += (Text(text, reasoning) for reasoning, text in listener.feed(event.id))
        elif isinstance(event, Done):
            rest = [Text(text, reasoning) for reasoning, text in listener.flush()]
            told = [*rest, *([Called()] if listener.called else []), event]
        yield told


def singly(events: Generator[Event]) -> Iterator[list[Told]]:
    """Each event as a step of its own, as `narrate` gives them."""
    with closing(events):
        for event in events:
            yield [event]


@dataclass(frozen=True)
class Answer:
    """A question and its answer."""

    question: str
    text: str
    reasoning: str
    done: Done
    origins: Origins | None = None
    called: bool = False  # a tool was called, instead of an answer or besides it

    @property
    def lack(self) -> AdamasError | None:
        """The message for a reply without an answer: the model only thought, or called a tool."""
        if self.text or not (self.reasoning or self.called):
            return None
        return AdamasError(without_answer(self.done, called=self.called))

    def as_json(self, load_seconds: float) -> dict[str, object]:
        """The part of the JSON object that belongs to this answer, with the model's loading time."""
        done = self.done
        record: dict[str, object] = {"question": self.question, "answer": self.text}
        if self.reasoning:
            record["reasoning"] = self.reasoning
        if self.lack is not None:
            record["error"] = self.lack.as_json()
        if self.origins is not None and self.origins.sources is not None:
            record["sources"] = [passage.as_json() for passage in self.origins.sources.passages]
        if self.origins is not None and self.origins.quotes is not None:
            record["quotes"] = [quote.as_json() for quote in self.origins.quotes]
        return record | {
            "finish_reason": done.finish_reason,
            "usage": {
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": done.reused_tokens},
            },
            "timings": {
                "load_s": round(load_seconds, 3),
                "prefill_s": round(done.prefill_seconds, 3),
                "ttft_s": round(done.first_token_seconds, 3),
                "decode_s": round(done.decode_seconds, 3),
                "prefill_tokens_per_s": rate(done.prompt_tokens - done.reused_tokens, done.prefill_seconds),
                "decode_tokens_per_s": rate(done.completion_tokens - 1, done.decode_seconds),
                "peak_memory_bytes": done.peak_memory_bytes,
            },
            "drafts": {
                "proposed": done.drafted.proposed,
                "accepted": done.drafted.accepted,
                "tokens_per_pass": done.drafted.tokens_per_pass,
            },
        }


def without_answer(done: Done, *, called: bool = False) -> str:
    """The message for a reply without an answer."""
    if called:
        return "there is no answer: the model called a tool, and none is offered"
    if done.finish_reason == "length":
        return (
            "there is no answer: the model was still thinking at `max_tokens`; raise it, lower "
            "`think_tokens`, or turn thinking off"
        )
    return "there is no answer: the model stopped after its thought; ask again, or turn thinking off"


def rate(tokens: int, seconds: float) -> float | None:
    """Tokens per second to two decimals; None if nothing was timed."""
    return round(tokens / seconds, 2) if tokens > 0 and seconds > 0 else None


def listen(question: str, events: Iterable[Told], show: Callable[[Told], None]) -> Answer:
    """Pass each event to `show` and gather the answer; the stream must end with Done."""
    said: dict[bool, list[str]] = {False: [], True: []}
    origins: Origins | None = None
    called = False
    for event in events:
        show(event)
        if isinstance(event, Text):
            said[event.reasoning].append(event.text)
        elif isinstance(event, Origins):
            origins = event
        elif isinstance(event, Called):
            called = True
        elif isinstance(event, Done):
            done = event
    text, reasoning = ("".join(said[kind]).rstrip() for kind in (False, True))
    return Answer(question, text, reasoning, done, origins, called)
