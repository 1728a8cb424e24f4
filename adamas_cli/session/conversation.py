"""Documents and turns for a model, which reads each token once as long as nothing before it changes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from adamas_cli.documents import Document
from adamas_cli.engine.events import Done, Event, Prefill, Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Steer
from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.prompt.counting import Counting
from adamas_cli.prompt.linemap import Location
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, Frame, load_template
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.session.chat_documents import ChatDocument, locate, shelved, tokens
from adamas_cli.session.dialogue import Dialogue, Prompt, Turn
from adamas_cli.session.documents import count
from adamas_cli.session.listener import Listener
from adamas_cli.session.runtime import Runtime
from adamas_cli.session.session import Session
from adamas_cli.sources.passages import Sources

ROOM_FOR_TURNS = 4096  # tokens reserved after the documents; the cache grows beyond that
LONGEST_FIRST_QUESTION = 256  # tokens that documents leave free for it
SHORTEST_REPLY = 16  # minimum room in tokens; with less, the conversation is full
_BARE = Frame("", "", "")  # layout of documents without the text before them


class Conversation:
    """The turns so far, and the next message. A context manager; leaving it waits for the store.

    However a generator of `read` or `ask` ends, the next one continues from what was read and said.
    """

    def __init__(self, runtime: Runtime, documents: Sequence[Document]) -> None:
        """Load the model and, meanwhile, count the documents.

        Raises ModelUnavailableError, OverContextError, and UsageError for a wrong template or `ctx_size`.
        """
        self.runtime = runtime
        options = runtime.prompt
        self._dialogue = self._opened(runtime.thinking)
        self.turns: list[Turn] = []
        self._next = Turn()  # without a question yet
        around = len(self._prompt().ids)
        layout = count(runtime, _BARE, documents, around, room=ROOM_FOR_TURNS, before=self._dialogue.head)
        self.context = runtime.context
        around += LONGEST_FIRST_QUESTION
        truncate = options.on_overflow == "truncate"
        self._next = Turn(shelved(layout, layout.fit(around, options.max_tokens, self.context, truncate)))
        self.dropped = layout.dropped
        if self.dropped:
            runtime.progress.note(layout.dropped_line)
        reach = len(self._prompt().ids) + options.max_tokens
        context = min(reach + ROOM_FOR_TURNS, self.context)
        self._session = Session(runtime, context, limit=self.context, reach=reach, counts=True)
        self._attended: np.ndarray | None = None  # by the last answer, as long as the documents stay
        self._unread = True  # until the tokens before the next question are in the cache

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._session.__exit__(kind, *error)

    @property
    def documents(self) -> list[ChatDocument]:
        """All documents in reading order."""
        return [document for turn in [*self.turns, self._next] for document in turn.documents]

    def think(self, wanted: bool | None, tokens: int | None = None) -> None:
        """From now on, have the model think before it answers, or not; None for its default.
        tokens: maximum length of a thought.
        """
        prompt = replace(self.runtime.prompt, think=wanted, think_tokens=tokens)
        self.runtime = replace(self.runtime, prompt=prompt, _thinking=None)
        self._dialogue, self._unread = self._opened(self.runtime.thinking), True

    def listener(self) -> Listener:
        """A listener for the next reply."""
        runtime = self.runtime
        most = runtime.prompt.max_tokens
        return Listener(runtime.tokenizer, runtime.thinking, self._dialogue.state, most, runtime.note_once)

    def _opened(self, thinking: Thinking) -> Dialogue:
        options = self.runtime.prompt
        return Dialogue(
            load_template(options.template or DEFAULT_TEMPLATE),
            self.runtime.chat,
            self.runtime.tokenizer,
            system=options.system,
            thinking=thinking,
            note=self.runtime.note_once,
        )

    @property
    def total(self) -> int:
        """All tokens so far, including the chat template's around the next question."""
        return len(self._prompt().ids)

    @property
    def unread(self) -> int:
        """The number of tokens to `read`: after documents were added or dropped, or reading interrupted."""
        if not self._unread:
            return 0
        ids = self._known()
        return len(ids) - self._session.timeline.reusable(ids)

    def read(self) -> Generator[Prefill]:
        """Read the unread tokens before the next question."""
        ids = self._known()
        if not self.turns and not self._session.timeline.reusable(ids):
            # The first documents, unread.
            self._session.keep(ids, [document.path for document in self._next.documents])
        yield from self._session.sync(ids)
        self._unread = False

    def ask(self, question: str, sampling: Sampling, steer: Steer | None = None) -> Generator[Event]:
        """The events while a question is answered; ends with Done unless it is closed earlier. steer: see
        `Timeline.answer`.

        A stopped reply is kept as far as it came; a question without a reply is forgotten. Raises
        OverContextError if the question does not fit.
        """
        turn = replace(self._next, question=question)
        prompt = self._prompt(turn)
        whole = min(len(prompt.ids) + self.runtime.prompt.max_tokens, self.context)
        if self._session.reach(whole) or self._unread:
            yield from self.read()
        longest = min(self.runtime.prompt.max_tokens, self.context - len(prompt.ids))
        if longest < min(SHORTEST_REPLY, self.runtime.prompt.max_tokens):
            raise self._full(len(prompt.ids))
        if longest < self.runtime.prompt.max_tokens:
            room = f"the context is nearly full: room for an answer of {longest:,} tokens"
            self.runtime.progress.note(f"{room}; /clear forgets the conversation and keeps the documents")
        again = self._session.timeline.length - self._session.timeline.reusable(prompt.ids)
        if again > 0:
            self.runtime.progress.note(
                f"the chat template changes earlier turns: {again:,} tokens are re-read"
            )
        said: list[int] = []
        done: Done | None = None
        try:
            answering = self._session.answer(prompt.ids, sampling, longest, keep=True, steer=steer)
            with closing(answering) as events:
                for event in events:
                    if isinstance(event, Token):
                        said.append(event.id)
                    elif isinstance(event, Done):
                        done = event
                    yield event
        finally:
            self._attended = self._session.timeline.attended()
            if said or done:
                reply = self._dialogue.reply(said, stopped=done is None)
                self.turns.append(replace(turn, reply=reply))
                self._next = Turn()
            else:
                self._session.timeline.return_to(self._known())

    def add(self, documents: Sequence[Document]) -> None:
        """Put documents into the next message, after everything so far. Raises UsageError for one that is
        already there, OverContextError if they do not fit.
        """
        known = {document.path for document in self.documents}
        for document in documents:
            if document.path in known:
                raise UsageError(
                    f"{document.path} is already in the conversation; /drop it first to re-read it"
                )
        layout = self.runtime.layout(_BARE, before=self._dialogue.head)
        with Counting(layout, documents, self.runtime.progress) as counting:
            counting.wait()
        answer, free = self.runtime.prompt.max_tokens, self.context - self.total
        if layout.total + answer > free:
            room = f"{max(0, free):,} are free, and an answer may need {answer:,}"
            raise OverContextError(
                f"that takes {layout.total:,} tokens; {room}\n"
                f"/drop and /clear make room{layout.largest_line()}",
                n_document_tokens=layout.total,
                n_answer_tokens=answer,
                n_ctx=self.context,
            )
        added = shelved(layout, layout.fit(0, 0, self.context))
        self._next, self._unread = replace(self._next, documents=self._next.documents + added), True

    def drop(self, name: str) -> list[ChatDocument]:
        """Remove documents by path or by folder, and return them. Raises UsageError if none matches."""
        dropped = [document for document in self.documents if document.is_named(name)]
        if not dropped:
            there = ", ".join(document.path for document in self.documents) or "none"
            raise UsageError(f"no document {name}; the conversation has: {there}")
        self.turns = [_without(turn, dropped) for turn in self.turns]
        self._next, self._unread, self._attended = _without(self._next, dropped), True, None
        return dropped

    def clear(self) -> None:
        """Forget the turns; their documents move to the next message."""
        self._next, self._unread, self._attended = Turn(tuple(self.documents)), True, None
        self.turns = []

    def locate(self, index: int) -> Location | None:
        """The document and line of the token at `index` of the cache; None outside documents."""
        return locate(self._prompt().documents, index)

    def sources(self, count: int) -> Sources | None:
        """This many of the last answer's most-attended passages; None if attention was not collected."""
        if self._attended is None:
            return None
        prompt = self._prompt()
        ids = prompt.ids[: len(self._attended)]
        return self._session.sources(self._attended, partial(locate, prompt.documents), ids, count)

    def as_json(self) -> dict[str, object]:
        """The fields that the JSON objects of all turns share."""
        return self._session.as_json() | {
            "documents": [
                {"path": document.path, "tokens": len(document.ids)} for document in self.documents
            ],
            "truncated": self.dropped > 0,
            "tokens_dropped": self.dropped,
        }

    def _prompt(self, turn: Turn | None = None) -> Prompt:
        return self._dialogue.prompt([*self.turns, turn or self._next])

    def _known(self) -> np.ndarray:
        """The ids before the next question."""
        prompt = self._prompt()
        return prompt.ids[: prompt.before_question]

    def _full(self, prompt: int) -> OverContextError:
        return OverContextError(
            f"the context is full: {prompt:,} of {self.context:,} tokens with this question\n"
            "/clear forgets the conversation and keeps the documents; /drop removes one",
            n_document_tokens=tokens(self.documents),
            n_prompt_tokens=prompt,
            n_ctx=self.context,
        )


def _without(turn: Turn, dropped: Sequence[ChatDocument]) -> Turn:
    kept = tuple(document for document in turn.documents if document not in dropped)
    return replace(turn, documents=kept)
