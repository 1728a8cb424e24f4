"""`adamas eval answers`: does sparse attention answer as full attention does?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamas_cli.commands.eval.shared import (
    Budgets,
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
    parse_length,
)
from adamas_cli.errors import NothingReadableError, UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, ModelSettings

if TYPE_CHECKING:
    from adamas_cli.lab.eval.answers import Examined
    from adamas_cli.lab.eval.asking import Prompting
    from adamas_cli.progress import Progress

EXAMPLE = 'adamas eval answers --document book.txt -q "Who is Mr. Darcy?"'

Wanted = dict[Path, list[tuple[str, list[str]]]]
"""The questions about each document, with their known answers."""


@grouped
def command(
    document: Annotated[
        Path | None, typer.Option("--document", metavar="FILE", help="The document that -q asks about.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option("-q", "--question", metavar="TEXT", help="A question (repeatable).")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE.jsonl",
            help="Lines of {question, document, answers}; paths are relative to the file.",
        ),
    ] = None,
    budgets: Budgets = "64,128,256",
    methods: Methods = "dot",
    read: Reads = "dense",
    dense_layers: DenseLayers = DecodingSettings.dense_layers,
    backend: Backend = DecodingSettings.backend,
    max_tokens: Annotated[
        int,
        typer.Option("-n", "--max-tokens", help="Longest answer.", parser=parse_length, metavar="LENGTH"),
    ] = 128,
    system: System = None,
    template: TemplateFile = None,
    think: Think = None,
    think_tokens: ThinkTokens = None,
    *,
    model: ModelSettings,
    report: ReportOptions,
) -> None:
    """Your documents and questions: adamas eval answers --document book.txt -q "Who is Mr. Darcy?"

    Greedy answers by each method beside those with full attention, and beside known ones.

    A document is read once for all of its questions and methods.
    """
    prepare_libraries(verbose=0, offline=model.offline)
    wanted = _wanted(document, question or [], questions)
    sizes = numbers(budgets, "--budgets")
    if max_tokens < 1:
        raise UsageError("--max-tokens: 0 is too small")
    ledger = report.ledger()

    from adamas_cli.lab.eval.answers import COLUMNS, Answers
    from adamas_cli.lab.eval.asking import Asker, Prompting
    from adamas_cli.lab.eval.columns import with_readings
    from adamas_cli.lab.eval.methods import METHODS
    from adamas_cli.lab.eval.reading import all_ways
    from adamas_cli.lab.eval.readings import DENSE, READINGS
    from adamas_cli.lab.eval.subject import Subject
    from adamas_cli.lab.eval.workload import Workload

    reads = names(read, "--read", READINGS)
    ways = all_ways(names(methods, "--methods", METHODS) if methods else [], sizes, ["dense"], reads)
    columns = COLUMNS if reads == [DENSE] else with_readings(COLUMNS)
    with showing(report, columns) as (told, display):
        subject = Subject.find(model, backend, dense_layers, display)
        prompting = Prompting.of(
            subject, system=system, template=template, think=think, think_tokens=think_tokens
        )
        examined = [_examined(path, asked, prompting, max_tokens, display) for path, asked in wanted.items()]
        for one in examined:
            subject.require(one.context + max_tokens, f"{one.name}, its question and -n {max_tokens:,}")
        settings = {
            "eval": "answers",
            **subject.settings,
            "seed": report.seed,
            "prompt_sha256": prompting.sha256,
        }
        run = Answers(examined, ways, settings, report.seed, subject.backend, ledger)
        workload = Workload()
        run.plan(workload)
        asker = Asker.load(subject, prompting, workload, display) if workload.total else None
        rows = tell(run.measure(asker), told, display, workload, ledger)
        if report.plot is not None:
            from adamas_cli.lab.eval.plots import draw_answers

            display.note(
                f"drew {len(draw_answers(densely_read(rows), report.plot))} pictures in {report.plot}"
            )


def _wanted(document: Path | None, asked: list[str], file: Path | None) -> Wanted:
    """The questions about each document. Raises UsageError."""
    if file is not None:
        if document is not None or asked:
            raise UsageError("the file of --questions names its documents: leave out --document and -q")
        return _lines(file)
    if document is None or not asked:
        raise UsageError(f"give a document and questions, as in: {EXAMPLE}\nor --questions FILE.jsonl")
    if not all(text.strip() for text in asked):
        raise UsageError(f"a question is empty; ask as in: {EXAMPLE}")
    return {document: [(text, []) for text in dict.fromkeys(asked)]}


def _lines(file: Path) -> Wanted:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"--questions {file}: {reason}") from None
    wanted: Wanted = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not _is_question(record):
            raise UsageError(
                f'--questions {file}, line {number}: write {{"question": "...", "document": "FILE", '
                '"answers": ["...", ...]}; answers are optional'
            )
        entry = (record["question"], record.get("answers") or [])
        of_document = wanted.setdefault(file.parent / record["document"], [])
        if entry not in of_document:
            of_document.append(entry)
    if not wanted:
        raise UsageError(f"--questions {file}: it has no questions")
    return wanted


def _is_question(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    texts = [record.get("question"), record.get("document")]
    answers = record.get("answers") or []
    if not isinstance(answers, list):
        return False
    return all(isinstance(text, str) and text.strip() for text in [*texts, *answers])


def _examined(
    path: Path, asked: list[tuple[str, list[str]]], prompting: Prompting, max_tokens: int, progress: Progress
) -> Examined:
    """The document and its questions as tokens. Raises UsageError if it does not exist, and
    NothingReadableError if it holds no text.
    """
    import hashlib
    import sys

    from adamas_cli.documents import Selection, collect
    from adamas_cli.lab.eval.answers import Examined
    from adamas_cli.lab.eval.asking import Asked

    collection = collect([str(path)], Selection(), stdin=sys.stdin.buffer, progress=progress)
    for note in collection.note_lines():
        progress.note(note)
    found = collection.documents
    if not found:
        raise NothingReadableError(f"{path} holds no text")
    digest = hashlib.sha256()
    for document in found:
        for piece in document.pieces():
            digest.update(piece.encode("utf-8", "replace"))
    return Examined(
        path.name,
        digest.hexdigest()[:12],
        prompting.document(*found),
        [Asked(number, text, prompting.question(text), max_tokens) for number, (text, _) in enumerate(asked)],
        [known for _, known in asked],
    )
