"""The text around documents and question: template, the model's chat template, each document's wrapper.

Documents come first and the question last, so that the documents' part of the cache serves every question.
Nothing volatile (dates, absolute paths, counts) comes before or between the documents.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from adamas_cli.errors import UsageError
from adamas_cli.prompt.messages import NO_TEMPLATE, ChatTemplate, Message, Messages
from adamas_cli.prompt.opening import text_start
from adamas_cli.prompt.thinking import Thinking

if TYPE_CHECKING:
    from adamas_cli.documents import Document

DEFAULT_TEMPLATE = "ask"
# Placeholders for documents and question while templates are filled in; private-use characters, which no
# template contains or trims.
DOCUMENTS_MARK, QUESTION_MARK = "\ue000documents\ue000", "\ue000question\ue000"
TEMPLATE_VARIABLES = ("documents", "question")
CLOSING_TAG = "</document>"
_CLOSING = re.compile(re.escape(CLOSING_TAG[:-1]), re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Frame:
    """The fixed text around documents and question: `head` documents `middle` question `tail`."""

    head: str
    middle: str
    tail: str


def load_template(name: str) -> Template:
    """A prompt template: the name of a built-in one, or a path to a file.

    Raises UsageError if there is none, or if it uses an unknown variable or lacks a required one.
    """
    path = Path(name)
    builtin = importlib.resources.files("adamas_prompts") / f"{name}.md"
    if builtin.is_file():
        text = builtin.read_text("utf-8")
    elif path.is_file():
        try:
            text = path.read_text("utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise UsageError(f"template {name} cannot be read as UTF-8 text: {error}") from error
    else:
        raise UsageError(f"unknown template {name!r}: give a file, or one of {', '.join(template_names())}")
    template = Template(text.strip("\n"))
    if not template.is_valid():
        raise UsageError(f"template {name}: a $ without a variable name; write $$ for a dollar sign")
    found = template.get_identifiers()
    unknown = [variable for variable in found if variable not in TEMPLATE_VARIABLES]
    if unknown:
        offered = " and ".join(f"${variable}" for variable in TEMPLATE_VARIABLES)
        raise UsageError(f"template {name}: unknown variable ${unknown[0]}; it may use {offered}")
    missing = [variable for variable in TEMPLATE_VARIABLES if variable not in found]
    if missing:
        raise UsageError(f"template {name}: ${missing[0]} is missing")
    return template


def template_names() -> list[str]:
    """The templates that come with adamas."""
    files = importlib.resources.files("adamas_prompts").iterdir()
    return sorted(file.name.removesuffix(".md") for file in files if file.name.endswith(".md"))


def frame(
    template: Template,
    chat: ChatTemplate,
    *,
    system: str | None = None,
    thinking: Thinking | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Frame:
    """The template inside the model's chat template. Models without one get the template itself, after the
    token that begins their texts.

    thinking: what the model is told about thinking, in its chat template or after it. note: called if there
    is no chat template, or if it takes messages in an unusual way.

    Raises UsageError unless documents and question occur once each, in this order; ModelUnavailableError if
    the chat template cannot be used.
    """
    text = template.substitute(documents=DOCUMENTS_MARK, question=QUESTION_MARK)
    marks = (DOCUMENTS_MARK, QUESTION_MARK)
    if [text.count(mark) for mark in marks] != [1, 1] or text.index(marks[0]) > text.index(marks[1]):
        raise UsageError("a template needs $documents once, and after it $question once")
    if chat.chat_template:
        thinking = thinking or Thinking()
        messages = Messages(chat, system=system, options=thinking.options, note=note)
        text = thinking.completed(messages.filled([Message("user", text)], marks), note)
    else:
        note(NO_TEMPLATE)
        text = text_start(chat) + (f"{system}\n\n{text}" if system else text)
    return Frame(*re.split("|".join(marks), text))


def opening(document: Document) -> str:
    """The line before a document's text."""
    return f"<document path={quoteattr(document.path)}>\n"


def closing() -> str:
    """The line after a document's text."""
    return f"\n{CLOSING_TAG}\n"


def wrapped(document: Document) -> Iterator[str]:
    """A document as it appears in a prompt, piece by piece: `Layout` makes tokens of the same text."""
    yield without_surrogates(opening(document))
    yield from map(without_surrogates, escaped(document.pieces()))
    yield closing()


def without_surrogates(text: str) -> str:
    """Replace surrogates, which have no UTF-8 form; file names have them for undecodable bytes."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def escaped(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces with every closing tag escaped, even if split between two pieces."""
    held = ""
    for piece in pieces:
        text = held + piece
        keep = max((n for n in range(1, len(CLOSING_TAG)) if text[-n:].lower() == CLOSING_TAG[:n]), default=0)
        held = text[len(text) - keep :]
        yield _CLOSING.sub(_defuse, text[: len(text) - keep])
    yield _CLOSING.sub(_defuse, held)


def _defuse(match: re.Match[str]) -> str:
    return "<\\/" + match.group()[2:]
