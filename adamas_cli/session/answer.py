"""An answer as text: token events turned into words, and the JSON record of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from adamas_cli.engine.events import Done, Event, Token
from adamas_cli.reasoning import ReasoningSplitter
from adamas_cli.sanitize import Sanitizer
from adamas_cli.sources.passages import Sources
from adamas_cli.sources.quotes import Quote


class Decoder(Protocol):
    """Turns token ids into text and never gives half a character."""

    def feed(self, token_id: int) -> str:
        """The text that is complete with this token."""
        ...

    def flush(self) -> str:
        """What was held back."""
        ...


@dataclass(frozen=True)
class Text:
    """A piece of what the model says; never empty, safe for a terminal."""

    text: str
    reasoning: bool  # what a thinking model thinks, not part of the answer


@dataclass(frozen=True)
class Origins:
    """Where an answer came from; comes before its Done. None is what was not asked for."""

    sources: Sources | None
    quotes: tuple[Quote, ...] | None


@dataclass(frozen=True)
class Step:
    """Anything else that happens before an answer begins."""


Told = Event | Text | Origins | Step
"""What happens while a question is answered."""


def narrate(events: Iterable[Event], decoder: Decoder, *, thinking: bool = False) -> Iterator[Event | Text]:
    """The events with a Text after each token that completes one; what is held back comes before Done.

    `thinking`: the prompt ended inside a thought.
    """
    sanitizer = Sanitizer()
    splitter = ReasoningSplitter(thinking=thinking)
    for event in events:
        if isinstance(event, Done):
            rest = sanitizer.feed(decoder.flush()) + sanitizer.flush()
            for reasoning, text in [*splitter.feed(rest), *splitter.flush()]:
                yield Text(text, reasoning)
        yield event
        if isinstance(event, Token):
            for reasoning, text in splitter.feed(sanitizer.feed(decoder.feed(event.id))):
                yield Text(text, reasoning)


@dataclass(frozen=True)
class Answer:
    """One question and what came of it."""

    question: str
    text: str
    reasoning: str
    done: Done
    origins: Origins | None = None

    def as_json(self, load_seconds: float) -> dict[str, object]:
        """The part of the JSON object that belongs to this answer, with the time that loading took."""
        done = self.done
        record: dict[str, object] = {"question": self.question, "answer": self.text}
        if self.reasoning:
            record["reasoning"] = self.reasoning
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
        }


def rate(tokens: int, seconds: float) -> float | None:
    """Tokens per second to two decimals; None where nothing was timed."""
    return round(tokens / seconds, 2) if tokens > 0 and seconds > 0 else None


def listen(question: str, events: Iterable[Told], show: Callable[[Told], None]) -> Answer:
    """Pass each event to `show` and gather the answer; the stream must end with Done."""
    said: dict[bool, list[str]] = {False: [], True: []}
    origins: Origins | None = None
    for event in events:
        show(event)
        if isinstance(event, Text):
            said[event.reasoning].append(event.text)
        elif isinstance(event, Origins):
            origins = event
        elif isinstance(event, Done):
            done = event
    return Answer(question, "".join(said[False]).rstrip(), "".join(said[True]).rstrip(), done, origins)
