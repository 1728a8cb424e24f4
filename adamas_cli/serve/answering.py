"""From a request to the events of its answer."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from adamas_cli.engine.events import Done, Event, Token
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.prompt.layout import Layout
from adamas_cli.prompt.template import DEFAULT_TEMPLATE, Frame, load_template
from adamas_cli.serve.errors import ApiError
from adamas_cli.serve.lanes import Lanes
from adamas_cli.serve.library import Library
from adamas_cli.serve.requests import Asked, Message
from adamas_cli.session.answer import Origins, Told, narrate, singly
from adamas_cli.session.chat_documents import ChatDocument, locate, shelved
from adamas_cli.session.dialogue import Dialogue, Prompt, Reply, Turn
from adamas_cli.session.listener import Listener
from adamas_cli.session.runtime import Runtime
from adamas_cli.session.schema import Schema
from adamas_cli.session.session import Session

REMEMBERED = 1000  # replies whose tokens are kept exactly as the model said them
LAID_OUT = 32  # sets of documents whose tokens are kept
LONGEST_QUESTION = 256  # tokens left free when documents are cut
SHORTEST_REPLY = 16  # tokens; with less room left a conversation is full
_BARE = Frame("", "", "")  # documents without the text before them


@dataclass(frozen=True)
class Prepared:
    """A request as tokens. history: identifies the conversation up to the reply. documents: tokens up to the
    end of the last document; 0 if there is none. schema: that the answer must satisfy.
    """

    asked: Asked
    dialogue: Dialogue
    prompt: Prompt
    history: str
    documents: int
    max_tokens: int
    schema: Schema | None


class Answering:
    """Answers over one runtime, whose model is loaded. lanes: answers in progress at once."""

    def __init__(self, runtime: Runtime, library: Library, lanes: int) -> None:
        self.runtime, self.library = runtime, library
        self._lanes = Lanes(runtime, lanes)
        self._replies: OrderedDict[str, Reply] = OrderedDict()  # by conversation and text
        self._laid_out: OrderedDict[tuple[object, ...], tuple[ChatDocument, ...]] = OrderedDict()
        self._preparing = threading.Lock()
        self._reading: set[bytes] = set()  # documents that some answer is reading

    def prepare(self, asked: Asked) -> Prepared:
        """Lay out a request, in any thread. Raises ApiError, OverContextError."""
        runtime = self.runtime
        with self._preparing:
            system = asked.system if asked.system is not None else runtime.prompt.system
            dialogue = Dialogue(
                load_template(runtime.prompt.template or DEFAULT_TEMPLATE),
                runtime.chat,
                runtime.tokenizer,
                system=system,
                thinking=runtime.thinking,
                note=runtime.note_once,
            )
            turns, history = self._turns(asked, dialogue, system)
            schema = self._schema(asked)
            if schema is not None:
                turns[-1] = replace(turns[-1], question=schema.asked(turns[-1].question))
            prompt = dialogue.prompt(turns)
        wanted = asked.max_tokens or runtime.prompt.max_tokens
        room = runtime.context - len(prompt.ids)
        if room < min(SHORTEST_REPLY, wanted):
            raise OverContextError(
                f"the prompt is {len(prompt.ids):,} tokens > context {runtime.context:,} less an answer of "
                f"{wanted:,}; name fewer documents, or begin a new conversation",
                n_prompt_tokens=len(prompt.ids),
                n_ctx=runtime.context,
            )
        end = max((start + len(document.ids) for start, document in prompt.documents), default=0)
        return Prepared(asked, dialogue, prompt, history, end, min(wanted, room), schema)

    def answer(self, prepared: Prepared) -> Iterator[list[Told]]:
        """The events of an answer, those of each step together, in the model's thread; sources come before
        Done, if requested.
        """
        prompt = prepared.prompt
        kept = prompt.ids[: prepared.documents].tobytes()
        while kept in self._reading:  # another answer is reading them: one reading serves both
            yield []
        context = len(prompt.ids) + prepared.max_tokens
        with self._lanes.base(prompt.ids[: prepared.documents], context) as base:
            if base is not None:
                yield from self._read(base.session, prepared, kept)
            with self._lanes.lane(prompt.ids, prepared.documents, context, base) as session:
                yield from self._read(session, prepared, kept)
                yield from self._said(session, prepared)

    def read_served(self) -> Iterator[list[Told]]:
        """Read the documents named at the start, in the model's thread, and wait for the store."""
        prepared = self.prepare(Asked((Message("user", "?"),), Sampling()))
        context = len(prepared.prompt.ids) + prepared.max_tokens
        ids = prepared.prompt.ids
        with self._lanes.base(ids[: prepared.documents], context) as base:
            if base is not None:
                yield from self._read(base.session, prepared, b"")
                base.session.finish()
            with self._lanes.lane(ids, prepared.documents, context, base) as session:  # the first answer's
                yield from self._read(session, prepared, b"")
                session.finish()

    def close(self) -> None:
        """Wait until everything read is stored, in the model's thread."""
        self._lanes.close()

    def _turns(self, asked: Asked, dialogue: Dialogue, system: str | None) -> tuple[list[Turn], str]:
        """The conversation, and its identifier."""
        first = asked.files if asked.names_files else self.library.served
        digest = hashlib.sha256(repr(system).encode())
        turns: list[Turn] = []
        for index, message in enumerate(asked.messages):
            if message.role == "assistant":
                reply = self._replies.get(_key(digest.hexdigest(), message.text))
                turns[-1] = Turn(
                    turns[-1].documents, turns[-1].question, reply or self._encoded(message.text)
                )
                digest.update(repr(message.text.strip()).encode())
                continue
            files = (*(first or ()), *message.files) if index == 0 else message.files
            digest.update(repr((files, message.text)).encode())
            turns.append(Turn(self._shelved(files, dialogue), message.text))
        return turns, digest.hexdigest()

    def _schema(self, asked: Asked) -> Schema | None:
        """Raises ApiError for a schema that no answer can be held to."""
        if asked.schema is None:
            return None
        grammars = self.runtime.grammars
        try:
            return Schema(asked.schema, grammars)
        except UsageError as error:
            raise ApiError(400, error.message, "invalid_schema", param="schema") from error

    def _shelved(self, files: tuple[str, ...], dialogue: Dialogue) -> tuple[ChatDocument, ...]:
        """Documents as tokens. Raises ApiError, OverContextError."""
        if not files:
            return ()
        key = (*dict.fromkeys(files), self.runtime.tokenizer.begins(dialogue.head))
        documents = self.library.documents(files)
        if key not in self._laid_out:
            layout = self.runtime.layout(_BARE, before=dialogue.head)
            layout.expect(documents)
            for document in documents:
                layout.add(document)
            self._laid_out[key] = shelved(layout, self._fitted(layout, dialogue))
            _forget(self._laid_out, LAID_OUT)
        self._laid_out.move_to_end(key)
        return self._laid_out[key]

    def _fitted(self, layout: Layout, dialogue: Dialogue) -> np.ndarray:
        """The documents, fitted by `on_overflow`; whether a question also fits is checked later."""
        options, context = self.runtime.prompt, self.runtime.context
        if options.token_budget is not None:
            layout.keep_budget(0, options.token_budget)
        if options.on_overflow != "truncate":
            return layout.fit(0, SHORTEST_REPLY, context)
        around = len(dialogue.prompt([Turn()]).ids) + LONGEST_QUESTION
        return layout.fit(around, options.max_tokens, context, truncate=True)

    def _encoded(self, text: str) -> Reply:
        return Reply(self.runtime.tokenizer.encode(text), text, "")

    def _said(self, session: Session, prepared: Prepared) -> Iterator[list[Told]]:
        """The events of an answer by a session that has read the documents."""
        runtime = self.runtime
        listener = Listener(
            runtime.tokenizer,
            runtime.thinking,
            prepared.dialogue.state,
            prepared.max_tokens,
            runtime.note_once,
        )
        with closing(self._answered(session, prepared, listener)) as answered:
            for events in narrate(answered, listener):
                if isinstance(events[-1], Done) and prepared.asked.sources:
                    events.insert(-1, self._origins(session, prepared))
                yield events

    def _read(self, session: Session, prepared: Prepared, name: bytes) -> Iterator[list[Told]]:
        """Read the documents into the timeline; stored parts are restored."""
        ids = prepared.prompt.ids[: prepared.documents]
        session.reach(len(prepared.prompt.ids) + prepared.max_tokens)
        if session.timeline.reusable(prepared.prompt.ids) >= len(ids):
            return
        if not session.timeline.reusable(ids):
            session.finish()
            session.timeline.return_to(ids)
            session.keep(ids, [document.path for _, document in prepared.prompt.documents])
        self._reading.add(name)
        try:
            yield from singly(session.sync(ids, len(prepared.prompt.ids)))
        finally:
            self._reading.discard(name)

    def _answered(self, session: Session, prepared: Prepared, listener: Listener) -> Generator[Event]:
        """The answer's tokens, which are remembered as the model said them."""
        sampling, said = prepared.asked.sampling, list[int]()
        if prepared.schema is not None:
            sampling = prepared.schema.constrained(sampling, listener)
        answering = session.answer(
            prepared.prompt.ids, sampling, prepared.max_tokens, keep=True, steer=listener.steer
        )
        with closing(answering) as events:
            for event in events:
                if isinstance(event, Token):
                    said.append(event.id)
                if isinstance(event, Done):
                    reply = prepared.dialogue.reply(said)
                    self._replies[_key(prepared.history, reply.text)] = reply
                    _forget(self._replies, REMEMBERED)
                yield event

    def _origins(self, session: Session, prepared: Prepared) -> Origins:
        weights = session.timeline.attended()
        ids = prepared.prompt.ids[: len(weights)] if weights is not None else np.empty(0, np.int32)
        where = partial(locate, prepared.prompt.documents)
        return Origins(session.sources(weights, where, ids, prepared.asked.sources), None)


def _key(history: str, text: str) -> str:
    return f"{history} {text.strip()}"


def _forget(known: OrderedDict, most: int) -> None:
    """Drop the oldest entries beyond `most`."""
    while len(known) > most:
        known.popitem(last=False)
