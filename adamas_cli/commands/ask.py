"""`adamas ask`: answers questions about documents."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from adamas_cli.commands.better import tell_better
from adamas_cli.commands.options import Questions, grouped
from adamas_cli.commands.reading import collect_documents, destination
from adamas_cli.commands.replies import ask_all, require_answers, write
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError, UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import (
    DecodingSettings,
    DocumentSettings,
    InputSettings,
    ModelSettings,
    OriginSettings,
    OutputSettings,
    PromptSettings,
)
from adamas_cli.store.settings import StoreSettings

EXAMPLE = 'adamas ask book.txt "Who is Mr. Darcy?"'


@grouped
def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCES... QUESTION",
            help="Files, folders, addresses or `-` (stdin), then the question, unless -q asks it.",
            show_default=False,
        ),
    ] = None,
    question: Questions = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            rich_help_panel="Question and answer",
            help="Answer with JSON by a JSON schema.",
            show_default=False,
        ),
    ] = None,
    *,
    model: ModelSettings,
    attention: DecodingSettings,
    sampling: Sampling,
    selection: InputSettings,
    together: DocumentSettings,
    prompt: PromptSettings,
    origins: OriginSettings,
    store: StoreSettings,
    output: OutputSettings,
) -> None:
    """Answer questions about documents: adamas ask book.txt "Who is Mr. Darcy?" """
    prepare_libraries(verbose=output.verbose, offline=model.offline)
    sources, questions = split_arguments(arguments or [], question or [], selection.files_from)
    form = None
    if schema is not None:
        form, prompt = read_schema(schema), replace(prompt, think=prompt.think or False)
        if prompt.on_overflow == "map-reduce":
            raise UsageError("--schema does not work with merged answers: leave out `on_overflow` map-reduce")

    from adamas_cli.terminal.display import Display

    with (
        destination(output.output) as stream,
        Display(
            answers=None if output.json or stream is not sys.stdout else stream,
            notes=sys.stderr,
            quiet=output.quiet,
            usage=output.usage,
            reasoning=not output.hide_reasoning,
            origins=origins.wanted and not output.json,
        ) as display,
    ):
        documents = collect_documents(
            sources, selection, display, verbose=output.verbose, keep=store.writes, offline=model.offline
        )
        from adamas_cli.session.documents import OpenDocuments

        if prompt.on_overflow == "map-reduce":
            from adamas_cli.commands.parts import answer_in_parts
            from adamas_cli.longdoc.job import asking
            from adamas_cli.session.runtime import Runtime

            runtime = Runtime.resolve(model, attention, prompt, store, display, origins, apart=together.apart)
            replies = answer_in_parts(runtime, documents, asking(questions), sampling, display)
        else:
            with OpenDocuments.open(
                documents, questions, model, attention, prompt, store, display, origins, form, together.apart
            ) as opened:
                replies = ask_all(opened, questions, sampling, display)
        write(replies, stream, as_json=output.json)
        tell_better(model, display, quiet=output.quiet)
        require_answers(replies, display, as_json=output.json)
        if form is not None and any(reply.answer.done.finish_reason == "length" for reply in replies):
            display.note("an answer was cut at `max_tokens` and is not complete JSON: raise it")
            raise typer.Exit(AdamasError.exit_code)


def read_schema(file: Path) -> dict[str, Any]:
    """The JSON schema in a file. Raises UsageError if there is none."""
    try:
        schema = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--schema {file} cannot be read as JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"--schema {file} is not a JSON object")
    return schema


def split_arguments(
    arguments: list[str], questions: list[str], files_from: str | None
) -> tuple[list[str], list[str]]:
    """The sources and the questions; raises UsageError with an example if one is missing."""
    if any(not text.strip() for text in questions or arguments[-1:]):
        raise UsageError(f"the question is empty; give one, as in: {EXAMPLE}")
    if questions:
        sources = arguments
    elif arguments:
        sources, questions = arguments[:-1], arguments[-1:]
        from adamas_cli.documents.remote import is_remote, is_web

        if questions[0] == "-" or os.path.exists(questions[0]) or is_web(questions[0]):
            if sources and sources[0] != "-" and not os.path.exists(sources[0]) and not is_remote(sources[0]):
                turned = shlex.join([*arguments[1:], arguments[0]])
                raise UsageError(f"the question comes last, as in: adamas ask {turned}")
            raise UsageError(
                f"the question is missing: {questions[0]} is a document\n"
                f'ask as in: adamas ask {shlex.join(arguments)} "your question"'
            )
    if not arguments and not questions:
        raise UsageError(f"give documents and a question, as in: {EXAMPLE}")
    if not sources and files_from is None:
        raise UsageError(f"give documents before the question, as in: {EXAMPLE}\n`-` reads one from stdin")
    return sources, questions
