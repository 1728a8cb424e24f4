"""The text around documents and question: template, the model's chat template, the wrapper of each document.

Documents come first and the question last, so that the document's part of the cache serves every question.
Nothing volatile (dates, absolute paths, counts) stands before or between the documents.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Protocol
from xml.sax.saxutils import quoteattr

from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.documents import Document

DEFAULT_TEMPLATE = "ask"
# Stand-ins for the documents and the question while templates are filled in; private-use characters, so that
# no template contains them and none trims them.
DOCUMENTS_MARK, QUESTION_MARK = "\ue000documents\ue000", "\ue000question\ue000"
TEMPLATE_VARIABLES = ("documents", "question")
CLOSING_TAG = "</document>"
_CLOSING = re.compile(re.escape(CLOSING_TAG[:-1]), re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")


class ChatTemplate(Protocol):
    """What turns messages into a model's own prompt format: `apply_chat_template` of a transformers
    tokenizer.
    """

    chat_template: str | None

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: object) -> str: ...


@dataclass(frozen=True)
class Frame:
    """The fixed text around documents and question: `head` documents `middle` question `tail`."""

    head: str
    middle: str
    tail: str


def load_template(name: str) -> Template:
    """A prompt template: the name of one that comes with adamas, or a path to a file.

    Raises UsageError if there is none, if it names a variable that is not offered, or lacks one that is
    needed.
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
        raise UsageError(
            f"there is no template {name!r}: give a file, or one of {', '.join(template_names())}"
        )
    template = Template(text.strip("\n"))
    if not template.is_valid():
        raise UsageError(f"template {name}: a $ that begins no variable; write $$ for a dollar sign")
    found = template.get_identifiers()
    unknown = [variable for variable in found if variable not in TEMPLATE_VARIABLES]
    if unknown:
        offered = " and ".join(f"${variable}" for variable in TEMPLATE_VARIABLES)
        raise UsageError(f"template {name}: ${unknown[0]} is not known; it may use {offered}")
    missing = [variable for variable in TEMPLATE_VARIABLES if variable not in found]
    if missing:
        raise UsageError(f"template {name}: ${missing[0]} is missing")
    return template


def template_names() -> list[str]:
    """The templates that come with adamas."""
    files = importlib.resources.files("adamas_prompts").iterdir()
    return sorted(file.name.removesuffix(".md") for file in files if file.name.endswith(".md"))


def frame(
    template: Template, chat: ChatTemplate, *, system: str | None = None, think: bool | None = None
) -> Frame:
    """The template inside the model's chat template; models without one get the template as it is.

    think: passed on to chat templates that can switch reasoning on or off (`enable_thinking`).
    Raises UsageError if the documents do not come before the question, each once.
    """
    text = template.substitute(documents=DOCUMENTS_MARK, question=QUESTION_MARK)
    if chat.chat_template:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        options = {} if think is None else {"enable_thinking": think}
        text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    elif system:
        text = f"{system}\n\n{text}"
    parts = re.split(f"{DOCUMENTS_MARK}|{QUESTION_MARK}", text)
    if len(parts) != 3 or text.index(DOCUMENTS_MARK) > text.index(QUESTION_MARK):
        raise UsageError("a template needs $documents once, and behind it $question once")
    return Frame(*parts)


def opening(document: Document) -> str:
    """The line before a document's text."""
    return f"<document path={quoteattr(document.path)}>\n"


def closing() -> str:
    """The line behind a document's text."""
    return f"\n{CLOSING_TAG}\n"


def wrapped(document: Document) -> Iterator[str]:
    """A document as a prompt has it, piece by piece: `Layout` makes tokens of the same text."""
    yield without_surrogates(opening(document))
    yield from map(without_surrogates, escaped(document.pieces()))
    yield closing()


def without_surrogates(text: str) -> str:
    """Text that has a UTF-8 form: file names may bring surrogates for bytes that are no text."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def escaped(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces with every closing tag defused, also one that two pieces share."""
    held = ""
    for piece in pieces:
        text = held + piece
        keep = max((n for n in range(1, len(CLOSING_TAG)) if text[-n:].lower() == CLOSING_TAG[:n]), default=0)
        held = text[len(text) - keep :]
        yield _CLOSING.sub(_defuse, text[: len(text) - keep])
    yield _CLOSING.sub(_defuse, held)


def _defuse(match: re.Match[str]) -> str:
    return "<\\/" + match.group()[2:]
