"""Documents in front of a model: opened once, then asked any number of questions."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.answer import Origins, Text, Told, narrate
from adamas_cli.engine.engine import Engine
from adamas_cli.engine.events import Done, Event
from adamas_cli.engine.sampling import Sampling
from adamas_cli.forecast.speed import computing_device, remember_run, speed_key
from adamas_cli.memory import give_back
from adamas_cli.prompt.counting import Counting
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, Frame
from adamas_cli.reasoning import OPEN
from adamas_cli.runtime import Runtime
from adamas_cli.sources.passages import Sources, find_sources
from adamas_cli.sources.quotes import REQUEST, check
from adamas_cli.store.document import StoredDocument

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.progress import Progress
    from adamas_cli.settings import DecodingSettings, ModelSettings, OriginSettings, PromptSettings
    from adamas_cli.store.settings import StoreSettings

log = logging.getLogger(__name__)


@dataclass
class Session:
    """Documents that are counted and fit. The first question pays for reading them."""

    runtime: Runtime
    layout: Layout
    engine: Engine
    max_tokens: int
    _frame: Frame
    _ids: np.ndarray  # the documents', with what stands before them
    _unread: bool  # until they are in the cache
    _stored: StoredDocument | None
    _announce_reuse: bool = True
    # What the engine said it has to compile, which spoils timings.
    _compiled: list[str] = field(default_factory=list)

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
    ) -> Session:
        """Load the model and, meanwhile, count the documents; nothing runs before it is known to fit.

        Room is kept for the longest of the questions. Raises ModelUnavailableError, OverContextError, and
        UsageError for a wrong template or `ctx_size`.
        """
        runtime = Runtime.resolve(model, attention, prompt, store, progress, origins)
        around = runtime.frame(prompt.template or DEFAULT_TEMPLATE)
        layout = count(runtime, around, documents, longest_question(runtime, around, questions))
        return cls.of(runtime, around, layout, questions)

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        around: Frame,
        layout: Layout,
        questions: Sequence[str],
        *,
        max_tokens: int | None = None,
        announce_reuse: bool = True,
    ) -> Session:
        """Documents that are laid out already, in front of a model that may serve other sessions too.

        max_tokens: of an answer, where it is not what the user's options say. announce_reuse: note how
        many tokens were read before. Raises OverContextError.
        """
        prompt, progress = runtime.prompt, runtime.progress
        answer = max_tokens or prompt.max_tokens
        longest = longest_question(runtime, around, questions)
        ids = layout.fit(longest, answer, runtime.context, truncate=prompt.on_overflow == "truncate")
        if layout.dropped:
            progress.note(
                f"left out {layout.dropped:,} of {layout.total:,} tokens, from the documents' middle"
            )
        compiled: list[str] = []
        engine = open_engine(runtime, len(ids) + longest + answer, compiled)
        stored = stored_document(runtime, engine, ids, [document.path for document in layout.documents])
        return cls(
            runtime, layout, engine, answer, around, ids, True, stored, announce_reuse, _compiled=compiled
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait until the documents are on disk; not where something went wrong."""
        if kind is None and self._stored is not None:
            self._stored.finish()

    def ask(self, question: str, sampling: Sampling) -> Iterator[Told]:
        """What happens while a question is answered; ends with Done, before which comes where the answer came
        from, if that is wanted.
        """
        text = asked(self.runtime, question)
        ids = question_ids(self.runtime.tokenizer, self._frame, text)
        thinking = self._frame.tail.rstrip().endswith(OPEN)
        decoder = self.runtime.tokenizer.decoder()
        said: list[str] = []
        for event in narrate(self._events(ids, sampling), decoder, thinking=thinking):
            if isinstance(event, Text) and not event.reasoning:
                said.append(event.text)
            if isinstance(event, Done) and self.runtime.origins.wanted:
                yield self._origins("".join(said))
            yield event

    def _origins(self, answer: str) -> Origins:
        wanted = self.runtime.origins
        return Origins(
            self.sources(wanted.sources) if wanted.sources else None,
            tuple(check(answer, self.layout, self._ids, self.runtime.tokenizer)) if wanted.cite else None,
        )

    def sources(self, count: int) -> Sources | None:
        """The passages that the last answer attended to most, so many; None where nothing was counted."""
        weights = self.engine.attended()
        if weights is None:
            return None
        return find_sources(weights, self.layout.locate, self._ids, self.runtime.tokenizer, count)

    def as_json(self) -> dict[str, object]:
        """What the JSON objects of all questions share."""
        return {
            "model": self.runtime.files.name,
            "attention": attention_json(self.engine),
            "documents": [
                {"path": document.path, "tokens": document.tokens} for document in self.layout.documents
            ],
            "truncated": self.layout.dropped > 0,
            "tokens_dropped": self.layout.dropped,
        }

    def _events(self, question: np.ndarray, sampling: Sampling) -> Iterator[Event]:
        begun, reused, reading = time.perf_counter(), self.engine.length, 0.0
        if self._unread:
            for event in self.engine.read(self._ids, self._stored):
                if event.reused > reused:
                    reused = event.reused
                    total = len(self._ids) + len(question)
                    if self._announce_reuse:
                        self.runtime.progress.note(f"reused {reused:,} of {total:,} tokens")
                yield event
            self._unread = False
            reading = time.perf_counter() - begun
        stop_ids = self.runtime.load().stop_ids
        for answered in self.engine.answer(question, sampling, self.max_tokens, stop_ids):
            if isinstance(answered, Done):
                answered = replace(
                    answered,
                    reused_tokens=reused,
                    prefill_seconds=answered.prefill_seconds + reading,
                    first_token_seconds=answered.first_token_seconds + reading,
                )
                if not self._compiled:
                    remember_run(self._speed_key, answered)
                self._compiled.clear()
            yield answered

    @property
    def _speed_key(self) -> str:
        """What `adamas plan` will know these timings by."""
        loaded = self.runtime.load()
        return speed_key(
            loaded.files.fingerprint,
            dtype=str(loaded.dtype).removeprefix("torch."),
            quantization=loaded.quantization,
            device=computing_device(loaded.device.type, self.runtime.model.threads),
            attention=self.engine.attention_kind,
        )


def asked(runtime: Runtime, question: str) -> str:
    """A question as the model gets it: with the request for quotations, if they are wanted."""
    return f"{question}\n\n{REQUEST}" if runtime.origins.cite else question


def longest_question(runtime: Runtime, around: Frame, questions: Sequence[str]) -> int:
    """Tokens of the longest of the questions, with what stands around it."""
    return max(len(question_ids(runtime.tokenizer, around, asked(runtime, text))) for text in questions)


def count(
    runtime: Runtime, around: Frame, documents: Sequence[Document], question: int, *, room: int = 0
) -> Layout:
    """Lay the documents out in a thread while the model's weights load; on a GPU, which has only so much
    memory, they are loaded once it is known how much will be needed, and with a token budget once it is known
    to do. Raises OverContextError where that does not.

    question: tokens that come on top, as far as the budget is concerned. room: and those that are reserved
    for more, as far as memory is.
    """
    with Counting(runtime.layout(around), documents, runtime.progress) as counting:
        if runtime.prompt.token_budget is not None:
            counting.wait().keep_budget(question, runtime.prompt.token_budget)
        if runtime.wants_cuda:
            needed = counting.wait().total + runtime.prompt.max_tokens + room
            if runtime.prompt.ctx_size:  # more than that is not read at once
                needed = min(needed, runtime.prompt.ctx_size)
            runtime.progress.note(f"memory: {runtime.memory(needed).line}")
        runtime.load()
        return counting.wait()


def open_engine(
    runtime: Runtime,
    context: int,
    compiled: list[str] | None = None,
    *,
    limit: int = 0,
    counts: bool = False,
) -> Engine:
    """An engine with room for so many tokens; says at the level INFO why it does not run in the fastest way.

    limit: tokens that there may come to be, see `Engine`.
    compiled: where each line is added by which the engine says that it compiles, which spoils timings.
    counts: keep a tally of what is attended to wherever that is sparse, also unasked.
    """

    def announce(line: str) -> None:
        if compiled is not None:
            compiled.append(line)
        runtime.progress.note(line)

    engine = Engine(
        runtime.load(),
        runtime.decoding,
        context=context,
        limit=limit,
        prefill_chunk=runtime.attention.prefill_chunk,
        announce=announce,
        counts=counts or runtime.origins.counts,
    )
    give_back()  # reading needs it for other sizes
    if log.isEnabledFor(logging.INFO):
        for reason in filter(None, (engine.backend_reason, engine.step_reason)):
            runtime.progress.note(reason)
    return engine


def stored_document(
    runtime: Runtime, engine: Engine, ids: np.ndarray, names: Sequence[str]
) -> StoredDocument | None:
    """The documents in `ids`, int [n], as the store has or will have them; None where it is not used."""
    if runtime.store.off or not engine.keeps_documents:
        return None
    settings, note = runtime.store, runtime.progress.note
    return StoredDocument(runtime.load(), ids, engine.chunk, settings, names, note)


def attention_json(engine: Engine) -> dict[str, object]:
    """How answers attend, for JSON."""
    sparse = engine.sparse
    return {
        "kind": engine.attention_kind,
        "backend": sparse.backend.name if sparse else None,
        "scorer": sparse.settings.scorer if sparse else None,
        "budget": sparse.settings.budget if sparse else None,
    }
