"""`adamas eval ppl`: divergence and perplexity on real text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamas_cli.commands.eval.shared import (
    METHODS,
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
from adamas_cli.commands.options import DenseLayers, grouped
from adamas_cli.errors import UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, ModelSettings

if TYPE_CHECKING:
    from adamas_cli.lab.eval.perplexity import Passage
    from adamas_cli.prompt.tokens import Tokenizer

LONGEST_TOKEN = 40  # characters, on average over a text


@grouped
def command(
    text: Annotated[list[Path], typer.Option("--text", metavar="FILE", help="A text in UTF-8 (repeatable).")],
    lengths: Lengths = "4k",
    budgets: Budgets = "64,128,256",
    methods: Methods = METHODS,
    read: Reads = "dense",
    scored: Annotated[
        int, typer.Option("--scored", min=1, help="Number of tokens after those to compare.")
    ] = 256,
    dense_layers: DenseLayers = DecodingSettings.dense_layers,
    *,
    model: ModelSettings,
    report: ReportOptions,
) -> None:
    """Divergence and perplexity on real text: adamas eval ppl --text book.txt --len 4k,8k

    The text is read with full attention, the tokens after it are fed one by one.

    Compared are the next token's distributions: full attention and each method.
    """
    prepare_libraries(verbose=0, offline=model.offline)
    contexts, sizes = numbers(lengths, "--len"), numbers(budgets, "--budgets")
    ledger = report.ledger()

    from adamas_cli.lab.eval.columns import with_readings
    from adamas_cli.lab.eval.methods import METHODS as KNOWN
    from adamas_cli.lab.eval.perplexity import BLOCKS, COLUMNS, Perplexity
    from adamas_cli.lab.eval.reading import all_ways
    from adamas_cli.lab.eval.readings import DENSE, READINGS
    from adamas_cli.lab.eval.subject import Subject
    from adamas_cli.lab.eval.workload import Workload

    reads = names(read, "--read", READINGS)
    ways = all_ways(names(methods, "--methods", KNOWN) if methods else [], sizes, ["dense"], reads)
    columns = COLUMNS if reads == [DENSE] else with_readings(COLUMNS, BLOCKS)
    with showing(report, columns) as (told, display):
        subject = Subject.find(model, "auto", dense_layers, display)
        needed = max(contexts) + scored + 1
        subject.require(needed, f"--len {max(contexts):,} and --scored {scored:,}")
        passages = [
            passage for path in text for passage in _passages(path, subject.tokenizer, contexts, scored)
        ]
        settings = {"eval": "ppl"} | subject.settings
        run = Perplexity(passages, ways, settings, dense_layers, report.seed, ledger)
        workload = Workload()
        run.plan(workload)
        loaded = subject.load(display) if workload.total else None
        rows = tell(run.measure(loaded, workload), told, display, workload, ledger)
        if report.plot is not None:
            from adamas_cli.lab.eval.plots import draw_perplexity

            display.note(
                f"drew {len(draw_perplexity(densely_read(rows), report.plot))} pictures in {report.plot}"
            )


def _passages(path: Path, tokenizer: Tokenizer, contexts: list[int], scored: int) -> list[Passage]:
    """The beginnings of a text. Raises UsageError if it cannot be read or is too short."""
    from adamas_cli.lab.eval.perplexity import Passage
    from adamas_cli.lab.texts import read_text

    needed = max(contexts) + scored + 1
    text, sha256 = read_text(path)
    ids = tokenizer.encode(text[: LONGEST_TOKEN * needed])[:needed]
    if len(ids) < needed:
        raise UsageError(
            f"--text {path}: it has {len(ids):,} tokens, and {needed:,} are needed. Give less --len."
        )
    return [Passage(path.name, sha256, ids, context, scored) for context in contexts]
