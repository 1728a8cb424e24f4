"""`adamas summarize`: a summary of documents of any length."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from adamas_cli.commands.better import tell_better
from adamas_cli.commands.options import SummaryPromptSettings, grouped
from adamas_cli.commands.reading import Sources, collect_documents, destination, require_sources
from adamas_cli.commands.replies import ask_all, require_answers, write
from adamas_cli.engine.sampling import Sampling
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, InputSettings, ModelSettings, OutputSettings
from adamas_cli.store.settings import StoreSettings

EXAMPLE = "adamas summarize book.txt --style bullets"
_TOKENS_PER_WORD = 2  # more than English needs, so that a summary of the allowed length is not cut


@grouped
def command(
    sources: Sources = None,
    style: Annotated[
        Literal["brief", "detailed", "bullets"],
        typer.Option("--style", rich_help_panel="Question and answer", help="How the summary is written."),
    ] = "brief",
    focus: Annotated[
        str | None,
        typer.Option(
            "--focus",
            metavar="TEXT",
            rich_help_panel="Question and answer",
            help="The subject to concentrate on.",
        ),
    ] = None,
    max_words: Annotated[
        int | None,
        typer.Option(
            "--max-words",
            min=1,
            metavar="N",
            rich_help_panel="Question and answer",
            help="Ask for at most this many words, and stop at twice as many tokens.",
        ),
    ] = None,
    *,
    model: ModelSettings,
    attention: DecodingSettings,
    sampling: Sampling,
    selection: InputSettings,
    prompt: SummaryPromptSettings,
    store: StoreSettings,
    output: OutputSettings,
) -> None:
    """Summarize documents and repositories of any length: adamas summarize book.txt --style bullets"""
    prepare_libraries(verbose=output.verbose, offline=model.offline)
    require_sources(sources, selection, EXAMPLE)

    from adamas_cli.terminal.display import Display

    with (
        destination(output.output) as stream,
        Display(
            answers=None if output.json or stream is not sys.stdout else stream,
            notes=sys.stderr,
            quiet=output.quiet,
            usage=output.usage,
            reasoning=not output.hide_reasoning,
        ) as display,
    ):
        documents = collect_documents(
            sources or [],
            selection,
            display,
            verbose=output.verbose,
            keep=store.writes,
            offline=model.offline,
        )
        from adamas_cli.commands.parts import answer_in_parts
        from adamas_cli.longdoc.job import summarizing
        from adamas_cli.longdoc.repository import repository_folders
        from adamas_cli.session.documents import OpenDocuments, count, longest_question
        from adamas_cli.session.runtime import Runtime

        job = summarizing(style, focus, max_words, repository_folders(sources or [], documents))
        longest = prompt.max_tokens
        if max_words is not None:
            longest = min(longest, _TOKENS_PER_WORD * max_words)
        runtime = Runtime.resolve(model, attention, prompt, store, display)
        if prompt.on_overflow == "map-reduce":
            replies = answer_in_parts(runtime, documents, job, sampling, display, max_tokens=longest)
        else:
            around = runtime.frame(prompt.template or job.whole)
            layout = count(runtime, around, documents, longest_question(runtime, around, job.finals))
            with OpenDocuments(runtime, around, layout, job.finals, max_tokens=longest) as opened:
                replies = ask_all(opened, job.finals, sampling, display)
        write(replies, stream, as_json=output.json)
        tell_better(model, display, quiet=output.quiet)
        require_answers(replies, display, as_json=output.json)
