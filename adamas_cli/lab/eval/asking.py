"""Questions about documents, answered in several ways; each document is read once for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from adamas_kernels.contract import Backend

from adamas_cli.documents import Document
from adamas_cli.engine.events import Event, Token
from adamas_cli.lab.eval.methods import METHODS
from adamas_cli.lab.eval.reading import FULL, Question, Reading, Way, by_reading
from adamas_cli.lab.eval.study import StudyBackend
from adamas_cli.lab.eval.subject import Subject
from adamas_cli.lab.eval.workload import Workload
from adamas_cli.models import LoadedModel
from adamas_cli.progress import Progress
from adamas_cli.prompt.chat import ChatTemplateFile
from adamas_cli.prompt.layout import Layout, question_ids
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, Frame, frame, load_template
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.prompt.tokens import Tokenizer
from adamas_cli.session.answer import listen, narrate
from adamas_cli.session.listener import Listener

PRODUCT = ("dot", "manhattan")  # the scorers that `ask` offers, which its own backends support


@dataclass(frozen=True)
class Prompting:
    """Documents and questions as the tokens that `ask` would give the model."""

    tokenizer: Tokenizer
    frame: Frame
    thinking: Thinking = field(default_factory=Thinking)

    @classmethod
    def of(
        cls,
        subject: Subject,
        *,
        system: str | None,
        template: str | None,
        think: bool | None,
        think_tokens: int | None,
    ) -> Prompting:
        """The prompt of `ask` for a model. Raises UsageError for a wrong template."""
        text = load_template(template or DEFAULT_TEMPLATE)
        chat = ChatTemplateFile(subject.files.texts)
        control = subject.tokenizer.control_tokens
        thinking = Thinking.of(chat, control, wanted=think, tokens=think_tokens)
        return cls(subject.tokenizer, frame(text, chat, system=system, thinking=thinking), thinking)

    @property
    def sha256(self) -> str:
        """The first digits of the hash of the text around documents and question."""
        around = "\0".join((self.frame.head, self.frame.middle, self.frame.tail))
        return hashlib.sha256(around.encode("utf-8", "replace")).hexdigest()[:12]

    def document(self, *documents: Document) -> np.ndarray:
        """The tokens read before a question, int32 [n]."""
        layout = Layout(self.tokenizer, self.frame)
        for document in documents:
            layout.add(document)
        return layout.fit(0, 0, layout.total)

    def question(self, text: str) -> np.ndarray:
        """The tokens read after the documents, int32 [n]."""
        return question_ids(self.tokenizer, self.frame, text)

    def listener(self, max_tokens: int) -> Listener:
        """A listener for an answer of at most this many tokens."""
        state = self.thinking.marks.state_behind(self.frame.tail)
        return Listener(self.tokenizer, self.thinking, state, max_tokens)

    def said(self, question: str, events: Iterable[Event], listener: Listener) -> Said:
        """The answer in a stream of events."""
        tokens: list[int] = []

        def noted() -> Iterator[Event]:
            for event in events:
                if isinstance(event, Token):
                    tokens.append(event.id)
                yield event

        told = chain.from_iterable(narrate(noted(), listener))
        return Said(listen(question, told, lambda _: None).text, tokens)


@dataclass(frozen=True)
class Said:
    """An answer: its text without the thinking, and all of its tokens."""

    text: str
    tokens: list[int]


@dataclass(frozen=True)
class Asked:
    """A question about a document. number: its index."""

    number: int
    text: str
    ids: np.ndarray
    max_tokens: int


def backend_name(method: str, product: str) -> str:
    """The backend that computes the steps of a method: the product's, or plain torch."""
    if method == FULL:
        return "dense"
    return product if method in PRODUCT else StudyBackend.name


@dataclass
class Asker:
    """A model that answers questions. product: the backend that `ask` would use."""

    loaded: LoadedModel
    prompting: Prompting
    product: Backend
    dense_layers: int
    workload: Workload

    @classmethod
    def load(cls, subject: Subject, prompting: Prompting, workload: Workload, progress: Progress) -> Asker:
        """Load the model and its backend."""
        loaded = subject.load(progress)
        return cls(loaded, prompting, subject.load_backend(progress.note), subject.dense_layers, workload)

    def answers(
        self, document: np.ndarray, asked: Mapping[Way, Sequence[Asked]]
    ) -> Iterator[tuple[Way, Asked, Said]]:
        """Read a document's tokens, int32 [n], in each way, and ask; yields each answer when complete."""
        if not asked:
            return
        room = max(len(one.ids) + one.max_tokens for each in asked.values() for one in each)
        for read, ways in by_reading(asked).items():
            reading = Reading(
                self.loaded, context=len(document) + room, dense_layers=self.dense_layers, how=read
            )
            self.workload.read(len(document), reading.read(document), read)
            yield from self._answers(reading, len(document), {way: asked[way] for way in ways})
            del reading  # there is never room for two caches

    def _answers(
        self, reading: Reading, tokens: int, asked: Mapping[Way, Sequence[Asked]]
    ) -> Iterator[tuple[Way, Asked, Said]]:
        """The answers about a document of `tokens` tokens that was read in one way."""
        for way, questions in asked.items():
            if way.method != FULL:
                method = METHODS[way.method]
                backend = self.product if way.method in PRODUCT else StudyBackend(method)
                reading.use(method, way.budget, backend)
            listeners = [self.prompting.listener(one.max_tokens) for one in questions]
            each = [
                Question(one.ids, one.max_tokens, listener.steer)
                for one, listener in zip(questions, listeners, strict=True)
            ]
            streams = reading.answers(each, way.sparse_from)
            for one, listener, events in zip(questions, listeners, streams, strict=True):
                with self.workload.steps(way.method, one.max_tokens, tokens):
                    said = self.prompting.said(one.text, events, listener)
                yield way, one, said


def plan(
    workload: Workload, tokens: int, asked: Mapping[Way, Sequence[Asked]] | Mapping[Way, Sequence[int]]
) -> None:
    """Count the work for one document of this many tokens and its questions, or the answers' lengths."""
    for read in by_reading(asked):
        workload.plan_reading(tokens, read)
    for way, questions in asked.items():
        for one in questions:
            workload.plan_steps(way.method, one.max_tokens if isinstance(one, Asked) else one, tokens)
