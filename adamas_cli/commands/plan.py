"""`adamas plan`: the cost of a question about documents, without asking it."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Annotated

import typer

from adamas_cli.commands.options import Questions, grouped
from adamas_cli.commands.reading import collect_documents
from adamas_cli.commands.shared import AsJson, print_json
from adamas_cli.errors import UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import (
    DecodingSettings,
    DocumentSettings,
    InputSettings,
    ModelSettings,
    PromptSettings,
)
from adamas_cli.store.settings import StoreSettings

EXAMPLE = 'adamas plan book.txt "Who is Mr. Darcy?"'


@grouped
def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCES... [QUESTION]",
            help="Files, folders, addresses or `-` (stdin); a last argument that is no path is the question.",
            show_default=False,
        ),
    ] = None,
    question: Questions = None,
    tree: Annotated[bool, typer.Option("--tree", help="Show tokens by folder.")] = False,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Time this machine now, or never; by default if no earlier run timed it.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only the plan and errors.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Show more notes; -vv adds tracebacks.")
    ] = 0,
    *,
    model: ModelSettings,
    attention: DecodingSettings,
    selection: InputSettings,
    together: DocumentSettings,
    prompt: PromptSettings,
    store: StoreSettings,
) -> None:
    """Count tokens, memory and time before a question is asked: adamas plan src/ --tree"""
    prepare_libraries(verbose=verbose, offline=model.offline)
    sources, questions = split_arguments(arguments or [], question or [], selection.files_from)

    from adamas_cli.terminal.display import Display

    with Display(answers=None, notes=sys.stderr, quiet=quiet) as display:
        documents = collect_documents(
            sources,
            selection,
            display,
            verbose=verbose,
            keep=store.writes,
            offline=model.offline,
            ocr_sample=True,
        )
        from adamas_cli.forecast.forecast import Settings, forecast
        from adamas_cli.forecast.tree import grow

        settings = Settings(model, attention, prompt, store, together.apart)
        plan = forecast(documents, questions, settings, display, calibrates=calibrate)
    grown = grow({document.path: document.tokens for document in plan.counted.documents}) if tree else None
    if not as_json:
        from adamas_cli.terminal.planning import shown

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(shown(plan, grown, width)))
    if plan.over_budget is not None:
        raise plan.over_budget
    if as_json:
        print_json(plan.as_json(grown))


def split_arguments(
    arguments: list[str], questions: list[str], files_from: str | None
) -> tuple[list[str], list[str]]:
    """The sources and the questions, if any: the last of several arguments is a question if it is not a path
    and looks like a question. Raises UsageError if the sources are missing.
    """
    sources = arguments
    alone = len(arguments) == 1 and files_from is None
    if arguments and not questions and not alone and _is_question(arguments[-1]):
        sources, questions = arguments[:-1], arguments[-1:]
    if not sources and files_from is None:
        raise UsageError(f"give documents, as in: {EXAMPLE}")
    return sources, questions


def _is_question(text: str) -> bool:
    from adamas_cli.documents.remote import is_web

    if text == "-" or os.path.exists(text) or is_web(text):
        return False
    return " " in text.strip() or text.rstrip().endswith("?")
