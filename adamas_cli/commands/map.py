"""`adamas map`: a table with an answer to every question about every document."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from adamas_cli.commands.ask import read_schema
from adamas_cli.commands.extras import require_extra
from adamas_cli.commands.options import Questions, grouped
from adamas_cli.commands.reading import Sources, require_sources, selection_of, tell_skipped, with_file_list
from adamas_cli.commands.shared import AsJson, print_json
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError, NothingReadableError, UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, InputSettings, ModelSettings, PromptSettings
from adamas_cli.store.settings import StoreSettings

EXAMPLE = 'adamas map contracts/ -q "When does it end?" -o answers.csv'


@grouped
def command(
    sources: Sources = None,
    question: Questions = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            rich_help_panel="Output",
            help="The table: .jsonl, .csv or .parquet. FILE.journal beside it keeps each row as it comes.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            rich_help_panel="Question and answer",
            help="Answer with JSON by a JSON schema; each of its properties is a column.",
            show_default=False,
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", rich_help_panel="Output", help="Ask again where an earlier run got no answer."
        ),
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="CLUSTER",
            rich_help_panel="Cluster",
            help="Answer on a Ray cluster: ray (this machine's, or RAY_ADDRESS), ray://HOST:PORT, HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            rich_help_panel="Cluster",
            help="Models on the cluster; by default one for each GPU, or as many as there are cores for.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only errors.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Show more notes; -vv adds tracebacks.")
    ] = 0,
    *,
    model: ModelSettings,
    attention: DecodingSettings,
    sampling: Sampling,
    selection: InputSettings,
    prompt: PromptSettings,
    store: StoreSettings,
) -> None:
    """Ask every question about every document: adamas map contracts/ -q "Who signs?" -o answers.csv

    Each file is a document of its own. A run that was interrupted continues where it stopped.
    """
    prepare_libraries(verbose=verbose, offline=model.offline)
    require_sources(sources, selection, EXAMPLE)
    questions = tuple(dict.fromkeys(question or ()))
    if not questions or not all(text.strip() for text in questions):
        raise UsageError(f"give questions with -q, as in: {EXAMPLE}")
    if output is None:
        raise UsageError(f"name the table with -o, as in: {EXAMPLE}")
    if on is not None:
        require_extra("cluster", "ray", "pyarrow")
    elif workers is not None:
        raise UsageError("--workers is for a cluster: add --on")
    form = None if schema is None else read_schema(schema)

    from dataclasses import replace

    from adamas_cli.documents.apart import listed
    from adamas_cli.mapping.job import Job
    from adamas_cli.mapping.run import Answers, Run
    from adamas_cli.terminal.display import Display
    from adamas_cli.terminal.spelling import spelled

    if form is not None:
        prompt = replace(prompt, think=prompt.think or False)
        if prompt.on_overflow == "map-reduce":
            raise UsageError("--schema does not work with merged answers: leave out `on_overflow` map-reduce")
    chosen = selection_of(selection)
    job = Job(questions, model, attention, sampling, chosen, prompt, store, form)
    with Display(answers=None, notes=sys.stderr, quiet=quiet) as display:

        def answers() -> Answers:
            if on is not None:
                from adamas_cli.mapping.cluster import on_cluster

                return on_cluster(job, on, workers)
            from adamas_cli.mapping.answering import Answerer

            return Answerer(job, display).answers

        named = with_file_list(sources or [], selection)
        found, left_out = listed(named, chosen, progress=display, offline=model.offline)
        tell_skipped(left_out, display, verbose=verbose)
        if not found:
            raise NothingReadableError("There is no file to read in the folders that were named.")
        report = Run(job, found, output, retry=retry_failed, worded=spelled).finish(answers, display)
        display.note(
            f"{report.rows:,} rows about {report.documents:,} documents in {output}, {report.failed:,} "
            f"without an answer; {report.answered:,} of them now, in {report.seconds:,.1f} s: read "
            f"{report.tokens_read:,} tokens, reused {report.tokens_reused:,}"
        )
    if as_json:
        print_json(report.as_json())
    if report.failed:
        raise typer.Exit(AdamasError.exit_code)
