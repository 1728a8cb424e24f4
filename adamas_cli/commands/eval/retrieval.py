"""`adamas eval retrieval`: does sparse attention find what full attention finds?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adamas_cli.commands.eval.shared import (
    Budgets,
    Lengths,
    Methods,
    Reads,
    ReportOptions,
    densely_read,
    names,
    numbers,
    showing,
    tell,
)
from adamas_cli.commands.options import (
    Backend,
    DenseLayers,
    System,
    TemplateFile,
    Think,
    ThinkTokens,
    grouped,
)
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, ModelSettings


@grouped
def command(
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 text to hide things in.")],
    tasks: Annotated[
        str,
        typer.Option("--tasks", metavar="LIST", help="Any of passkey, needle, multikey, variables, words."),
    ] = "passkey,needle,multikey,variables,words",
    lengths: Lengths = "4k",
    depths: Annotated[
        str,
        typer.Option("--depths", metavar="LIST", help="Where in the document to hide things, in percent."),
    ] = "0,25,50,75,100",
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Documents for each task, length and depth.")
    ] = 5,
    question: Annotated[
        str,
        typer.Option(
            "--question",
            metavar="LIST",
            help="Read the question with full attention (dense, as ask does) or with sparse attention.",
        ),
    ] = "dense",
    budgets: Budgets = "128",
    methods: Methods = "dot",
    read: Reads = "dense",
    dense_layers: DenseLayers = DecodingSettings.dense_layers,
    backend: Backend = DecodingSettings.backend,
    system: System = None,
    template: TemplateFile = None,
    think: Think = None,
    think_tokens: ThinkTokens = None,
    *,
    model: ModelSettings,
    report: ReportOptions,
) -> None:
    """Things hidden in a text of yours: adamas eval retrieval --text book.txt --len 4k,8k

    A score is the share of what was to be found that the greedy answer holds.

    A document is read once, and answered with full attention and by each method.
    """
    prepare_libraries(verbose=0, offline=model.offline)
    contexts, sizes = numbers(lengths, "--len"), numbers(budgets, "--budgets")
    places = numbers(depths, "--depths", least=0, most=100)
    kinds = names(question, "--question", ("dense", "sparse"))
    ledger = report.ledger()

    from adamas_cli.lab.eval.asking import Asker, Prompting
    from adamas_cli.lab.eval.columns import with_readings
    from adamas_cli.lab.eval.haystack import Haystack
    from adamas_cli.lab.eval.methods import METHODS
    from adamas_cli.lab.eval.reading import all_ways
    from adamas_cli.lab.eval.readings import DENSE, READINGS
    from adamas_cli.lab.eval.retrieval import COLUMNS, Design, Retrieval
    from adamas_cli.lab.eval.subject import Subject
    from adamas_cli.lab.eval.tasks import TASKS
    from adamas_cli.lab.eval.workload import Workload
    from adamas_cli.lab.texts import read_text

    reads = names(read, "--read", READINGS)
    ways = all_ways(names(methods, "--methods", METHODS) if methods else [], sizes, kinds, reads)
    chosen = [TASKS[name] for name in names(tasks, "--tasks", TASKS)]
    prose, sha256 = read_text(text)
    columns = COLUMNS if reads == [DENSE] else with_readings(COLUMNS)
    with showing(report, columns) as (told, display):
        subject = Subject.find(model, backend, dense_layers, display)
        answer = max(task.max_tokens for task in chosen)
        subject.require(max(contexts) + answer, f"--len {max(contexts):,} and an answer of {answer}")
        prompting = Prompting.of(
            subject, system=system, template=template, think=think, think_tokens=think_tokens
        )
        haystack = Haystack(prose, lambda piece: len(subject.tokenizer.encode(piece)))
        settings = {
            "eval": "retrieval",
            **subject.settings,
            "text": text.name,
            "text_sha256": sha256,
            "prompt_sha256": prompting.sha256,
        }
        design = Design(chosen, contexts, places, samples, report.seed, ways)
        run = Retrieval(design, haystack, prompting, text.name, settings, subject.backend, ledger)
        run.check()
        workload = Workload()
        run.plan(workload)
        asker = Asker.load(subject, prompting, workload, display) if workload.total else None
        rows = tell(run.measure(asker), told, display, workload, ledger)
        if report.plot is not None:
            from adamas_cli.lab.eval.plots import draw_retrieval

            display.note(
                f"drew {len(draw_retrieval(densely_read(rows), report.plot))} pictures in {report.plot}"
            )
