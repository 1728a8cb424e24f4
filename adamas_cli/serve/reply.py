"""An answer in progress: its text up to a stop text, and the counts that clients get."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
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
    """The state of an answer so far. reused: tokens of the prompt that were read earlier, once it is known.
    reason: why it ended, `stop` or `length`. first: seconds until its first token. spelled: the tokens of the
    text, if requested; spelling: what finds them then.
    """

    prepared: Prepared
    spelling: Spelling | None = None
    begun: float = field(default_factory=time.perf_counter)
    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    reused: int | None = None
    reason: str = "stop"
    first: float | None = None
    origins: Origins | None = None
    notes: list[str] = field(default_factory=list)
    spelled: list[Spelled] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, including those read earlier."""
        return len(self.prepared.prompt.ids)

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were not read again."""
        return self.reused or 0

    async def follow(self, events: AsyncIterator[Sequence[Told]]) -> AsyncIterator[Said | Prefill]:
        """What a client may see of events, each after it is counted here; pieces of text that come together
        are one. After a stop text, no more events are taken.
        """
        stops = Stops(self.prepared.asked.stop)
        async for together in events:
            said: Said | None = None
            for piece in self._pieces(together, stops):
                if said is not None and (isinstance(piece, Prefill) or piece.reasoning != said.reasoning):
                    yield said
                    said = None
                if isinstance(piece, Prefill):
                    yield piece
                elif said is None:
                    said = piece
                else:
                    said = Said(said.text + piece.text, said.reasoning, said.tokens + piece.tokens)
            if said is not None:
                yield said
            if stops.found:
                return

    def _pieces(self, events: Sequence[Told], stops: Stops) -> Iterator[Said | Prefill]:
        """The same of some events, piece by piece."""
        for event in events:
            if isinstance(event, Prefill):
                self.reused = event.reused if self.reused is None else self.reused
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
