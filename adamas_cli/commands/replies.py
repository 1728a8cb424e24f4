"""Answers of a command: asked, then printed, written to a file or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from adamas_cli.engine.sampling import Sampling
    from adamas_cli.session.answer import Answer, Told
    from adamas_cli.session.documents import OpenDocuments
    from adamas_cli.terminal.display import Display


@dataclass(frozen=True)
class Reply:
    """The answer to one question, and its whole JSON object."""

    answer: Answer
    record: dict[str, object]


def ask_all(
    documents: OpenDocuments, questions: Sequence[str], sampling: Sampling, display: Display
) -> list[Reply]:
    """Ask all questions, and show the answers one after the other."""
    answers = listen_to_all(questions, documents.ask_all(questions, sampling), display)
    about = documents.as_json()
    return [Reply(answer, answer.as_json(documents.runtime.load_seconds) | about) for answer in answers]


def listen_to_all(
    questions: Sequence[str], streams: Iterable[Iterator[Told]], display: Display
) -> list[Answer]:
    """The answers at the ends of the streams, one for each question."""
    from adamas_cli.session.answer import listen

    answers = []
    for text, events in zip(questions, streams, strict=True):
        if len(questions) > 1:
            display.question(text)
        answers.append(listen(text, events, display.show))
    return answers


def write(replies: Sequence[Reply], stream: TextIO, *, as_json: bool) -> None:
    """Write the output of `--json`, or the text unless the display has already printed it."""
    if as_json:
        records = [reply.record for reply in replies]
        json.dump(records[0] if len(records) == 1 else records, stream, ensure_ascii=False, indent=2)
        stream.write("\n")
    elif stream is not sys.stdout:
        stream.write("\n".join(f"{reply.answer.text}\n" for reply in replies))


def require_answers(replies: Sequence[Reply], display: Display, *, as_json: bool) -> None:
    """Raises AdamasError for a reply without an answer; with JSON, which reports it too, typer.Exit."""
    lacking = [reply.answer.lack for reply in replies if reply.answer.lack is not None]
    if not lacking:
        return
    if not as_json:
        raise lacking[0]
    import typer

    display.note(lacking[0].message)
    raise typer.Exit(lacking[0].exit_code)
