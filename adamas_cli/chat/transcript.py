"""A conversation as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.output import replacing
from adamas_cli.sanitize import plain
from adamas_cli.session.dialogue import Turn

if TYPE_CHECKING:
    from adamas_cli.session.conversation import Conversation

STOPPED = "*(stopped)*"


def markdown(model: str, documents: Sequence[str], turns: Sequence[Turn]) -> str:
    """Questions as second-level headings, answers unchanged."""
    blocks = ["# Conversation", "\n".join([f"* model: {model}", *(f"* document: {d}" for d in documents)])]
    for turn in turns:
        first, *rest = plain(turn.question).splitlines() or [""]
        blocks.append(f"## {first}")
        if rest:
            blocks.append("\n".join(rest))
        if turn.reply is not None:
            blocks += [turn.reply.text] if turn.reply.text else []
            blocks += [STOPPED] if turn.reply.stopped else []
    return "\n\n".join(blocks) + "\n"


def save(path: Path, conversation: Conversation) -> None:
    """Write the conversation to a file, completely or not at all. Raises UsageError."""
    documents = [document.path for document in conversation.documents]
    with replacing(path) as stream:
        stream.write(markdown(conversation.runtime.files.name, documents, conversation.turns))
