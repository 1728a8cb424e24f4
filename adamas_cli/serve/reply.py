"""An answer in progress: its text up to a stop text, and the counts that clients get."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adamas_cli.engine.events import Done, Prefill, Token
from adamas_cli.serve.likelihoods import Spelled, Spelling
from adamas_cli.serve.stops import Stops
from adamas_cli.session.answer import Called, Origins, Text, Told, without_answer
from adamas_cli.session.listener import CALLED

if TYPE_CHECKING:
    from adamas_cli.serve.answering import Prepared


@dataclass(frozen=True)
class Said:
    """A piece of the answer, or of the reasoning before it."""

    text: str
    reasoning: bool
    tokens: tuple[Spelled, ...] = ()  # its tokens, if requested


@dataclass
class Reply:
    """The state of an answer so far. reason: why it ended, `stop` or `length`. first: seconds until its first
    token. spelled: the tokens of the text, if requested; spelling: what finds them then.
    """

    prepared: Prepared
    spelling: Spelling | None = None
    begun: float = field(default_factory=time.perf_counter)
    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    cached: int = 0
    reason: str = "stop"
    first: float | None = None
    origins: Origins | None = None
    notes: list[str] = field(default_factory=list)
    spelled: list[Spelled] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, including those read earlier."""
        return len(self.prepared.prompt.ids)

    async def follow(
        self, events: AsyncIterator[Told], has_more: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[Said | Prefill]:
        """The events that a client may see, each after it is counted here; pieces of text that wait already,
        as `has_more` tells, are one. After a stop text, no more events are taken.
        """
        said: Said | None = None
        async for piece in self._followed(events):
            if isinstance(piece, Said):
                if said is not None and piece.reasoning == said.reasoning:
                    piece = Said(said.text + piece.text, said.reasoning, said.tokens + piece.tokens)
                elif said is not None:
                    yield said
                said = piece
            if said is not None and (isinstance(piece, Prefill) or not has_more()):
                yield said
                said = None
            if isinstance(piece, Prefill):
                yield piece
        if said is not None:
            yield said

    async def _followed(self, events: AsyncIterator[Told]) -> AsyncIterator[Said | Prefill | None]:
        """The same, piece by piece; None after an event that shows nothing."""
        stops = Stops(self.prepared.asked.stop)
        cached: int | None = None
        async for event in events:
            if isinstance(event, Prefill):
                cached = event.reused if cached is None else cached
                self.cached = cached
                yield event
            elif isinstance(event, Token):
                self.tokens += 1
                self.first = self.first or time.perf_counter() - self.begun
                if self.spelling is not None:
                    self.spelling.feed(event)
            elif isinstance(event, Text):
                text = event.text if event.reasoning else stops.feed(event.text)
                if text:
                    yield self._said(text, event.reasoning)
                if stops.found:
                    return
            elif isinstance(event, Called):
                self.notes.append(CALLED)
            elif isinstance(event, Origins):
                self.origins = event
            elif isinstance(event, Done):
                self.reason = event.finish_reason
                if rest := stops.flush():
                    yield self._said(rest, False)
                if self.spelling is not None and (left := self.spelling.rest()):
                    yield self._spelled("", left)
                if not self.text and (self.reasoning or self.notes):
                    self.notes.append(without_answer(event, called=bool(self.notes)))
            yield None

    def sources(self) -> list[dict[str, object]] | None:
        """The most-attended passages, where they were asked for and attention was counted."""
        if self.origins is None or self.origins.sources is None:
            return None
        return [passage.as_json() for passage in self.origins.sources.passages]

    def _said(self, text: str, reasoning: bool) -> Said:
        if reasoning:
            self.reasoning += text
            if self.spelling is not None:
                self.spelling.forget()
            return Said(text, reasoning)
        self.text += text
        return self._spelled(text, [] if self.spelling is None else self.spelling.spell(text))

    def _spelled(self, text: str, tokens: list[Spelled]) -> Said:
        self.spelled += tokens
        return Said(text, False, tuple(tokens))

    def logprobs(self, tokens: Iterable[Spelled]) -> list[dict[str, object]] | None:
        """Tokens with their log-probabilities, in OpenAI's form; None if not requested."""
        return None if self.spelling is None else [self.spelling.as_json(token) for token in tokens]
