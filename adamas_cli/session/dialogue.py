"""A conversation as token ids, in the model's chat template.

Templates are filled in with placeholders, which the ids of documents, questions and answers replace. So no
text ever becomes a control token, and the model's replies stay the same token by token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.prompt.layout import NO_IDS
from adamas_cli.prompt.messages import ChatTemplate, Message, Messages
from adamas_cli.prompt.opening import text_start
from adamas_cli.prompt.template import frame
from adamas_cli.prompt.thinking import Thinking
from adamas_cli.reasoning import FORMS, State
from adamas_cli.session.listener import Listener

if TYPE_CHECKING:
    from adamas_cli.prompt.tokens import Tokenizer
    from adamas_cli.session.chat_documents import ChatDocument

# Private-use characters, as in prompt/template.py; the number is the turn's.
_MARK = re.compile("\ue000(\\d+) (documents|question|thought|answer|reply)\ue000")


@dataclass(frozen=True)
class Reply:
    """The model's reply in a turn."""

    ids: np.ndarray  # int32 [n], as generated, without a stop token
    text: str  # without the thought
    thought: str
    stopped: bool = False  # by the user
    several: bool = False  # has control tokens other than those around a thought


@dataclass(frozen=True)
class Turn:
    """A user's message, with its documents, and the reply once there is one."""

    documents: tuple[ChatDocument, ...] = ()
    question: str = ""
    reply: Reply | None = None


@dataclass(frozen=True)
class Prompt:
    """A whole conversation, up to the start of the next reply."""

    ids: np.ndarray  # int32 [n]
    before_question: int  # tokens that do not depend on the last question, including its documents
    documents: tuple[tuple[int, ChatDocument], ...]  # with the position of each


@dataclass
class _Parts:
    """Ids in order, with their total length."""

    ids: list[np.ndarray] = field(default_factory=list)
    length: int = 0

    def add(self, ids: np.ndarray) -> None:
        self.ids.append(ids)
        self.length += len(ids)


class Dialogue:
    """Turns a conversation into prompts.

    template: for messages with documents; other messages are only the question. Raises UsageError unless the
    template holds documents and question once each, in this order.
    """

    def __init__(
        self,
        template: Template,
        chat: ChatTemplate,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        thinking: Thinking | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._thinking = thinking or Thinking()
        around = frame(template, chat, system=system, thinking=thinking, note=note)
        self.head = around.head  # text before the first documents
        self.state = self._thinking.marks.state_behind(around.tail)
        self._template, self._chat, self._tokenizer = template, chat, tokenizer
        self._system = system
        self._messages = Messages(chat, system=system, options=self._thinking.options)
        self._encode_fixed = lru_cache(maxsize=None)(tokenizer.encode_template)

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """The ids of a conversation; its last turn awaits the reply."""
        text = self._filled(turns)
        parts, documents, before, end = _Parts(), [], 0, 0
        for mark in _MARK.finditer(text):
            if fixed := text[end : mark.start()]:
                parts.add(self._encode_fixed(fixed, begins=end == 0))
            end = mark.end()
            begins = bool(fixed or not parts.length) and self._tokenizer.begins(fixed)
            turn, kind = turns[int(mark[1])], mark[2]
            if kind == "question":
                before = before if turn.documents else parts.length
                parts.add(self._tokenizer.encode(turn.question, begins=begins))
            elif kind == "documents":
                for document in turn.documents:
                    documents.append((parts.length, document))
                    parts.add(document.ids)
                before = parts.length
            else:
                assert turn.reply is not None
                parts.add(self._replied(turn.reply, kind, begins))
        if text[end:]:
            parts.add(self._encode_fixed(text[end:]))
        return Prompt(np.concatenate([NO_IDS, *parts.ids]), before, tuple(documents))

    def reply(self, ids: Sequence[int], *, stopped: bool = False) -> Reply:
        """The reply that these tokens, int [n], form."""
        listener = Listener(self._tokenizer, self._thinking, self.state)
        said = {False: "", True: ""}
        for reasoning, part in [*listener.feed(*ids), *listener.flush()]:
            said[reasoning] += part
        answer, thought = said[False].rstrip(), said[True].rstrip()
        return Reply(np.array(ids, np.int32), answer, thought, stopped, listener.several)

    @property
    def starts_thinking(self) -> bool:
        """Whether each reply begins inside a thought."""
        return self.state is State.THOUGHT

    def _filled(self, turns: Sequence[Turn]) -> str:
        """The conversation in the chat template, with marks for everything that is not template text."""
        asked = [self._message(number, turn) for number, turn in enumerate(turns)]
        told = [self._content(number, turn.reply) for number, turn in enumerate(turns) if turn.reply]
        if not self._chat.chat_template:
            text = "\n\n".join(a + b for a, b in zip(asked, [*told, ""], strict=True))
            return text_start(self._chat) + (f"{self._system}\n\n{text}" if self._system else text)
        messages = []
        for number, message in enumerate(asked):
            messages.append(Message("user", message))
            if number < len(told):
                messages.append(Message("assistant", told[number]))
        text = self._messages.filled(messages, [_mark(len(turns) - 1, "question")])
        for number, turn in enumerate(turns):
            # A template that kept the thought unchanged has kept the whole reply.
            reply = turn.reply
            if reply and reply.thought and reply.text and not reply.several and not self.starts_thinking:
                text = text.replace(self._content(number, reply), _mark(number, "reply"))
        return self._thinking.completed(text)

    def _message(self, number: int, turn: Turn) -> str:
        question = _mark(number, "question")
        if number > 0 and not turn.documents:
            return question
        return self._template.substitute(documents=_mark(number, "documents"), question=question)

    def _content(self, number: int, reply: Reply) -> str:
        """The reply for the chat template, which may want to omit the thought; only the answer if the reply
        contains message marks.
        """
        if reply.several:
            return _mark(number, "answer")
        if not reply.thought:
            return _mark(number, "reply")
        form = self._thinking.marks.form or FORMS[0]
        return f"{form.opens}{_mark(number, 'thought')}{form.closes}{_mark(number, 'answer')}"

    def _replied(self, reply: Reply, kind: str, begins: bool) -> np.ndarray:
        if kind == "reply":
            return reply.ids
        return self._tokenizer.encode(reply.thought if kind == "thought" else reply.text, begins=begins)


def _mark(number: int, kind: str) -> str:
    return f"\ue000{number} {kind}\ue000"
