"""Documents that fit a model's context: opened once, then asked any number of questions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Done, Event
from adamas_cli.engine.peak import free_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.forecast.speed import computing_device, remember_run, speed_key
from adamas_cli.planning.joining import NOTE
from adamas_cli.planning.together import answers_at_once
from adamas_cli.prompt.counting import Counting
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, Frame
from adamas_cli.session.answer import Origins, Text, Told, narrate, singly
from adamas_cli.session.apart import read_apart, require_joining
from adamas_cli.session.listener import Listener
from adamas_cli.session.runtime import Runtime
from adamas_cli.session.session import Session
from adamas_cli.session.turns import Turns
from adamas_cli.sources.passages import Sources
from adamas_cli.sources.quotes import FIELD_REQUEST, REQUEST, check, quotations, quoted_fields

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.progress import Progress
    from adamas_cli.settings import DecodingSettings, ModelSettings, OriginSettings, PromptSettings
    from adamas_cli.sources.quotes import Quote
    from adamas_cli.store.settings import StoreSettings

Opening = Generator[list[Told], None, Session]
"""Reads documents step by step, and returns the session that has read them."""

log = logging.getLogger(__name__)


class OpenDocuments:
    """Documents that are counted and fit. The first question includes the time to read them.

    A context manager; leaving it waits until they are on disk.
    """

    def __init__(
        self,
        runtime: Runtime,
        around: Frame,
        layout: Layout,
        questions: Sequence[str] = (),
        *,
        room: int = 0,
        limit: int = 0,
        max_tokens: int | None = None,
        announces: bool = True,
        batch: Batch | None = None,
    ) -> None:
        """Documents that are already laid out, for a model that may serve others too.

        Room is kept for the longest of the questions, or for one of `room` tokens. max_tokens: of an answer,
        if it differs from the user's settings. limit, announces, batch: see `Session`. Raises
        OverContextError.
        """
        self.runtime, self.layout = runtime, layout
        self.max_tokens = max_tokens or runtime.prompt.max_tokens
        self._frame = around
        longest = longest_question(runtime, around, questions) if questions else room
        truncate = runtime.prompt.on_overflow == "truncate"
        self._ids = layout.fit(longest, self.max_tokens, runtime.context, truncate=truncate)
        if layout.dropped:
            runtime.progress.note(layout.dropped_line)
        needed = len(self._ids) + longest + self.max_tokens
        self._session = Session(
            runtime,
            needed,
            limit=limit,
            reach=self._position(needed),
            announces=announces,
            batch=batch,
            forks=len(questions) > 1,
        )
        if layout.apart:
            require_joining(self._session)
            if len(layout.documents) > 1:
                runtime.progress.note(NOTE)
        else:
            self._session.keep(self._ids, [document.path for document in layout.documents])

    @classmethod
    def open(
        cls,
        documents: Sequence[Document],
        questions: Sequence[str],
        model: ModelSettings,
        attention: DecodingSettings,
        prompt: PromptSettings,
        store: StoreSettings,
        progress: Progress,
        origins: OriginSettings | None = None,
        schema: Mapping[str, Any] | None = None,
        apart: bool = False,
    ) -> OpenDocuments:
        """Load the model and, meanwhile, count the documents; nothing runs before they are known to fit.
        apart: see `DocumentSettings`.

        Raises ModelUnavailableError, OverContextError, and UsageError for a wrong template or `ctx_size`.
        """
        runtime = Runtime.resolve(model, attention, prompt, store, progress, origins, schema, apart=apart)
        around = runtime.frame(prompt.template or DEFAULT_TEMPLATE)
        layout = count(runtime, around, documents, longest_question(runtime, around, questions))
        return cls(runtime, around, layout, questions)

    def __enter__(self) -> OpenDocuments:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._session.__exit__(kind, *error)

    def ask(self, question: str, sampling: Sampling) -> Iterator[Told]:
        """The events while a question is answered; ends with Done, preceded by the answer's Origins if they
        are wanted.
        """
        with closing(self._told(question, sampling, self._read)) as turns:
            for events in turns:
                yield from events

    def ask_all(self, questions: Sequence[str], sampling: Sampling) -> list[Iterator[Told]]:
        """The same for several questions, to be read in this order. They are answered together if possible:
        the documents are read once, and each pass through the model computes a token of each answer.
        """
        timeline = self._session.timeline
        if len(questions) == 1 or timeline.batch_reason is not None:
            if len(questions) > 1 and log.isEnabledFor(logging.INFO):
                self.runtime.progress.note(timeline.batch_reason or "")
            return [self.ask(text, sampling) for text in questions]
        timeline.batch = timeline.batch or Batch(timeline.model)
        longest = max(len(self._question(text)) for text in questions)
        tail = longest + self.max_tokens
        most = answers_at_once(timeline.fork_bytes(len(self._ids), tail), free_memory(timeline.model.device))
        reading = _Once(self._read(len(self._ids) + longest))
        forking = partial(self._fork, reading)
        begin = [partial(self._told, text, sampling, forking) for text in questions]
        return [chain.from_iterable(stream) for stream in Turns(begin, most).streams()]

    def sources(self, count: int) -> Sources | None:
        """This many of the last answer's most-attended passages; None if attention was not collected."""
        return self._sources(self._session, count)

    def as_json(self) -> dict[str, object]:
        """The fields that the JSON objects of all questions share."""
        return self._session.as_json() | {
            "documents": [
                {"path": document.path, "tokens": document.tokens} for document in self.layout.documents
            ],
            "apart": self.layout.apart,
            "truncated": self.layout.dropped > 0,
            "tokens_dropped": self.layout.dropped,
        }

    def _sources(self, session: Session, count: int) -> Sources | None:
        weights = session.timeline.attended()
        return session.sources(weights, self.layout.locate, self._ids, count)

    def _origins(self, session: Session, answer: str) -> Origins:
        wanted = self.runtime.origins
        return Origins(
            self._sources(session, wanted.sources) if wanted.sources else None,
            self._quotes(answer) if wanted.cite else None,
        )

    def _quotes(self, answer: str) -> tuple[Quote, ...]:
        quotes = quotations(answer) if self.runtime.schema is None else quoted_fields(answer)
        return tuple(check(quotes, self.layout, self._ids, self.runtime.tokenizer))

    def _question(self, question: str) -> np.ndarray:
        return question_ids(self.runtime.tokenizer, self._frame, asked(self.runtime, question))

    def _told(
        self,
        question: str,
        sampling: Sampling,
        opening: Callable[[int], Opening],
    ) -> Generator[list[Told]]:
        """See `ask`; the events of each step together. opening: gets the token count with the question,
        returns a session after reading.
        """
        ids = np.concatenate([self._ids, self._question(question)])
        listener = self.runtime.listener(self._frame.tail, self.max_tokens)
        if schema := self.runtime.schema:
            sampling = schema.constrained(sampling, listener)
        session = yield from opening(len(ids))
        said: list[str] = []
        for events in narrate(self._events(session, ids, sampling, listener), listener):
            said += (event.text for event in events if isinstance(event, Text) and not event.reasoning)
            if isinstance(events[-1], Done) and self.runtime.origins.wanted:
                events.insert(-1, self._origins(session, "".join(said)))
            yield events

    def _read(self, tokens: int) -> Opening:
        """The documents' own session, once it has read them. tokens: including the question."""
        session, reach = self._session, self._position(tokens + self.max_tokens)
        session.reach(reach)
        if session.timeline.length < len(self._ids):
            if self.layout.apart:
                yield from singly(read_apart(session, self.layout, reach, tokens))
            else:
                yield from singly(session.sync(self._ids, tokens))
        return session

    def _position(self, tokens: int) -> int:
        """The position after this many tokens of documents, question and answer."""
        return tokens - (self.layout.total - self.layout.positions)

    def _fork(self, reading: _Once, tokens: int) -> Opening:
        """A session for one answer, which begins once the documents are read."""
        yield from reading.steps()
        return self._session.fork()

    def _events(
        self, session: Session, ids: np.ndarray, sampling: Sampling, listener: Listener
    ) -> Iterator[Event]:
        reading = session.reading
        for event in session.answer(ids, sampling, self.max_tokens, steer=listener.steer):
            if isinstance(event, Done):
                event = replace(event, first_token_seconds=event.first_token_seconds + reading)
                alone = session is self._session and not self.layout.apart
                if alone and not (session.compiled or event.drafted.accepted):
                    remember_run(self._speed_key, event)  # other runs do not predict future ones
                session.compiled.clear()
            yield event

    @property
    def _speed_key(self) -> str:
        """The key of these timings for `adamas plan`."""
        loaded = self.runtime.load()
        return speed_key(
            loaded.files.fingerprint,
            dtype=str(loaded.dtype).removeprefix("torch."),
            quantization=loaded.quantization,
            device=computing_device(loaded.device.type, self.runtime.model.threads, self.runtime.model.gpus),
            attention=self._session.timeline.attention_kind,
            read=self._session.timeline.read_kind,
            in_bytes=loaded.in_bytes,
        )


class _Once:
    """Steps whose end several streams wait for; the first stream takes them."""

    def __init__(self, steps: Iterator[list[Told]]) -> None:
        self._steps, self._begun, self._ended = steps, False, False

    def steps(self) -> Iterator[list[Told]]:
        """The steps, for the first stream; for others, one without events for each wait."""
        if not self._begun:
            self._begun = True
            yield from self._steps
            self._ended = True
        while not self._ended:
            yield []


def asked(runtime: Runtime, question: str) -> str:
    """A question as the model gets it: with requests for quotations and JSON, if they are wanted."""
    if runtime.origins.cite:
        question = f"{question}\n\n{FIELD_REQUEST if runtime.schema else REQUEST}"
    return runtime.schema.asked(question) if runtime.schema else question


def longest_question(runtime: Runtime, around: Frame, questions: Sequence[str]) -> int:
    """The tokens of the longest question, including the text around it."""
    return max(len(question_ids(runtime.tokenizer, around, asked(runtime, text))) for text in questions)


def count(
    runtime: Runtime,
    around: Frame,
    documents: Sequence[Document],
    question: int,
    *,
    room: int = 0,
    before: str | None = None,
) -> Layout:
    """Lay out the documents in a thread while the model's weights load. On a GPU, whose memory is limited,
    weights are loaded after the needed memory is known; with a token budget, after it is known to suffice.
    Raises OverContextError if it does not.

    question: further tokens that count against the budget. room: further tokens to reserve memory for.
    before: see `Layout`.
    """
    with Counting(runtime.layout(around, before=before), documents, runtime.progress) as counting:
        if runtime.prompt.token_budget is not None:
            counting.wait().keep_budget(question, runtime.prompt.token_budget)
        if runtime.wants_cuda:
            needed = counting.wait().total + runtime.prompt.max_tokens + room
            if runtime.prompt.ctx_size and not runtime.apart:  # a larger chunk is never read at once
                needed = min(needed, runtime.prompt.ctx_size)
            runtime.progress.note(f"memory: {runtime.memory(needed).line}")
        runtime.load()
        return counting.wait()
