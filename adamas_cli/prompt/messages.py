"""Messages in a model's own chat template, in a form that the template accepts.

Some templates refuse or drop a system role, some want a message's content as a list of parts. Each way is
tried until one brings everything into the prompt; an unusual way is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple, Protocol

from adamas_cli.errors import ModelUnavailableError

NO_TEMPLATE = "the model has no chat template, so it is given plain text to continue"
NO_SYSTEM = "the model's chat template takes no system role, so the system prompt begins the first message"
AS_LISTS = "the model's chat template wants lists of parts, so each message is given as one"
# How a list looks if a template prints it unchanged.
_PRINTED_LIST = ("'type': 'text'", '"type": "text"')


def unusable(failure: Exception | None) -> str:
    """The message for a chat template that raises this error or loses parts of its input."""
    why = "it leaves out or repeats parts of its input"
    if failure is not None:
        why = next(iter(str(failure).strip().splitlines()), type(failure).__name__)
    return f"the model's chat template cannot be used: {why}\nfetch the model again, or use another one"


class ChatTemplate(Protocol):
    """Turns messages into a model's own prompt format, with the interface of a transformers tokenizer:
    `apply_chat_template`.
    """

    chat_template: str | None

    def apply_chat_template(self, conversation: list[dict[str, object]], **options: object) -> str: ...


class Message(NamedTuple):
    """A message with its role."""

    role: str
    text: str


class _Way(NamedTuple):
    """The form of messages: whether the system's is merged into the user's first; contents as lists."""

    merged: bool
    listed: bool


class Messages:
    """Fills in one chat template, which must exist. options: its variables. note: called with a message if an
    unusual way is used.
    """

    def __init__(
        self,
        chat: ChatTemplate,
        *,
        system: str | None,
        options: Mapping[str, object] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._chat = chat
        self._system = system
        self._options = options or {}
        self._note = note
        self._way: _Way | None = None

    def filled(self, messages: Sequence[Message], marks: Sequence[str]) -> str:
        """The prompt up to the model's reply. marks: must occur in it once, as they do in the messages.

        Raises ModelUnavailableError if the template is broken, or loses a mark in every way.
        """
        failure: Exception | None = None
        for way in self._ways():
            try:
                text = self._applied(messages, way)
            except Exception as error:  # a template is a program and may raise anything
                failure = failure or error
                continue
            if self._is_whole(text, way, marks):
                self._settle(way)
                return text
        raise ModelUnavailableError(unusable(failure)) from failure

    def _ways(self) -> Iterator[_Way]:
        if self._way is not None:
            yield self._way
            return
        for merged, listed in product((False, True), repeat=2):
            if self._system or not merged:
                yield _Way(merged, listed)

    def _applied(self, messages: Sequence[Message], way: _Way) -> str:
        given = list(messages)
        if self._system and way.merged:
            given[0] = Message(given[0].role, f"{self._system}\n\n{given[0].text}")
        elif self._system:
            given.insert(0, Message("system", self._system))
        conversation: list[dict[str, object]] = [
            {"role": role, "content": [{"type": "text", "text": text}] if way.listed else text}
            for role, text in given
        ]
        return self._chat.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, **self._options
        )

    def _is_whole(self, text: str, way: _Way, marks: Sequence[str]) -> bool:
        if any(text.count(mark) != 1 for mark in marks):
            return False
        if way.listed and any(printed in text for printed in _PRINTED_LIST):
            return False
        return not self._system or self._system.strip() in text

    def _settle(self, way: _Way) -> None:
        if self._way is None:
            self._way = way
            if way.merged:
                self._note(NO_SYSTEM)
            if way.listed:
                self._note(AS_LISTS)
