"""Shared by the commands of `adamas eval`: flags, lists, the file of rows and the display."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adamas_cli.commands.options import parse_length
from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.commands.eval.report import Report
    from adamas_cli.lab.eval.columns import Column
    from adamas_cli.lab.eval.ledger import Ledger, Record
    from adamas_cli.lab.eval.workload import Workload
    from adamas_cli.terminal.display import Display

METHODS = "oracle,dot,manhattan,paper,quest,streaming-llm"

Lengths = Annotated[str, typer.Option("--len", metavar="LIST", help="Tokens of context, such as 4k,8k.")]
Budgets = Annotated[
    str, typer.Option("--budgets", metavar="LIST", help="Tokens that each query head attends to.")
]
Methods = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar="LIST",
        help="Methods to compare; with an empty list, full attention alone.",
    ),
]
Reads = Annotated[
    str,
    typer.Option(
        "--read",
        metavar="LIST",
        help="How the document is read: any of dense, sparse, and the other sparse methods "
        "mass, means and antidiagonals. All are compared with dense reading and full attention.",
    ),
]


@dataclass(frozen=True)
class ReportOptions:
    """Where the rows go, and in which form."""

    form: Annotated[
        Literal["md", "csv", "json", "jsonl"] | None,
        typer.Option(
            "--format",
            rich_help_panel="Output",
            help="How rows are printed; a table on a terminal and md elsewhere by default.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.jsonl",
            rich_help_panel="Output",
            help="Append each row to this file as soon as it is measured.",
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel="Output", help="Skip rows that the file already has."),
    ] = False
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="DIR",
            rich_help_panel="Output",
            help="Draw the rows into this folder, as SVG and PNG (pip install 'adamas\\[plot]').",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of everything drawn at random, intervals included.", min=0)
    ] = 0

    def ledger(self) -> Ledger:
        """The rows of the output file. Raises UsageError for conflicting flags, a file that holds something
        else, and plots that cannot be drawn.
        """
        from adamas_cli.lab.eval.ledger import Ledger

        if self.resume and self.output is None:
            raise UsageError("--resume needs the file of an earlier run: add -o FILE.jsonl")
        if str(self.output) == "-":
            raise UsageError("-o - is not a file; rows go to stdout with --format jsonl")
        if self.plot is not None:
            if find_spec("matplotlib") is None:
                raise UsageError(
                    "--plot needs matplotlib, which is not installed: pip install 'adamas[plot]'"
                )
            if self.plot.exists() and not self.plot.is_dir():
                raise UsageError(f"--plot {self.plot}: it is a file; name a folder")
        return Ledger(self.output, resume=self.resume)


def numbers(text: str, flag: str, least: int = 1, most: int | None = None) -> list[int]:
    """The numbers of a list such as `4k,8k`, each once. Raises UsageError."""
    try:
        found = [parse_length(item) for item in text.split(",")]
    except typer.BadParameter as error:
        raise UsageError(f"{flag}: {error.message}") from None
    for number in found:
        if number < least:
            raise UsageError(f"{flag}: {number} is too small")
        if most is not None and number > most:
            raise UsageError(f"{flag}: {number} is more than {most}")
    return list(dict.fromkeys(found))


def names(text: str, flag: str, known: Collection[str]) -> list[str]:
    """The names of a list such as `dot,quest`, each once. Raises UsageError for an unknown one."""
    found = [item.strip() for item in text.split(",")]
    for name in found:
        if name not in known:
            raise UsageError(f"{flag} {name}: choose from {', '.join(known)}")
    return list(dict.fromkeys(found))


def densely_read(rows: Iterable[Record]) -> list[Record]:
    """The rows that pictures are drawn from."""
    return [row for row in rows if row["read"] is None]


@contextmanager
def showing(options: ReportOptions, columns: Sequence[Column]) -> Iterator[tuple[Report, Display]]:
    """The report on stdout and the display on stderr, which ends before a table is printed."""
    from adamas_cli.commands.eval.report import Report
    from adamas_cli.terminal.display import Display

    with (
        Report(options.form, columns, sys.stdout) as report,
        Display(answers=None, notes=sys.stderr) as display,
    ):
        yield report, display


def tell(
    records: Iterable[Record], report: Report, display: Display, workload: Workload, ledger: Ledger
) -> list[Record]:
    """Measure, report each record as it arrives, and return the rows."""
    rows: list[Record] = []
    with display.task("measuring", workload.total or None, "tokens", workload.remaining) as advance:
        workload.advance = advance
        for record in records:
            if record["record"] == "row":
                rows.append(record)
                report.row(record)
            else:
                report.detail(record)
    if ledger.foreign:
        display.note(f"{ledger.foreign:,} rows with other settings stay in the file and are not shown")
    return rows
