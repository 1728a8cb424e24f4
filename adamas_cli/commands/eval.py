"""`adamas eval`: is the sparse answer as good as the full one? Measured on the user's model and text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamas_cli.errors import OverContextError, UsageError
from adamas_cli.options import DenseLayers, Format, ModelOptions, grouped, parse_length
from adamas_cli.quiet import prepare_libraries

if TYPE_CHECKING:
    import numpy as np

    from adamas_cli.eval.perplexity import Row

LONGEST_TOKEN = 40  # characters, on average over a text
METHODS = "oracle,dot,manhattan,paper,quest,streaming-llm"
TITLES = (
    "text",
    "context",
    "method",
    "budget",
    "KL",
    "95 %",
    "top-1",
    "ppl",
    "ppl ratio",
    "mass kept",
    "recall",
)

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare sparse with full attention on a model and text of yours.",
)


@app.callback()
def _group() -> None:
    """Keeps `ppl` a command of its own while it is the only one."""


@app.command("ppl")
@grouped
def perplexity(
    text: Annotated[list[Path], typer.Option("--text", metavar="FILE", help="A text in UTF-8 (repeatable).")],
    lengths: Annotated[
        str, typer.Option("--len", metavar="LIST", help="Tokens read before the comparison, such as 4k,8k.")
    ] = "4k",
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="LIST", help="Tokens that each query head attends to.")
    ] = "64,128,256",
    methods: Annotated[
        str, typer.Option("--methods", metavar="LIST", help="Which ways to choose tokens are compared.")
    ] = METHODS,
    scored: Annotated[
        int, typer.Option("--scored", min=1, help="Tokens behind those, over which is compared.")
    ] = 256,
    dense_layers: DenseLayers = 2,
    form: Format = "md",
    *,
    model: ModelOptions,
) -> None:
    """Divergence and perplexity on real text: adamas eval ppl --text book.txt --len 4k,8k

    The text is read with full attention, the tokens after it are fed one by one.

    Compared are the next token's distributions: full attention and each method.
    """
    prepare_libraries(verbose=0, offline=model.offline)
    wanted = methods.split(",")
    contexts, sizes = _numbers(lengths, "--len"), _numbers(budgets, "--budgets")

    from adamas_cli.bench.table import csv_lines, json_line, markdown_head, markdown_row

    records: list[dict[str, object]] = []
    for name, row in _measure(text, contexts, sizes, wanted, scored, dense_layers, model):
        if form == "md" and not records:
            print(markdown_head(TITLES))
        records.append({"model": name, "dense_layers": dense_layers} | asdict(row))
        if form == "md":
            print(markdown_row(_cells(row)), flush=True)
        elif form == "jsonl":
            print(json_line(records[-1]), flush=True)
    if form == "json":
        print(json.dumps(records, ensure_ascii=False, indent=2))
    elif form == "csv":
        flat = [{k: v for k, v in record.items() if not isinstance(v, list)} for record in records]
        print(csv_lines(flat))


def _numbers(text: str, flag: str) -> list[int]:
    found = [parse_length(item) for item in text.split(",")]
    if min(found) < 1:
        raise UsageError(f"{flag}: 0 is too small")
    return found


def _measure(
    texts: Sequence[Path],
    contexts: Sequence[int],
    budgets: Sequence[int],
    methods: Sequence[str],
    scored: int,
    dense_layers: int,
    model: ModelOptions,
) -> Iterator[tuple[str, Row]]:
    """The rows, with the model's name; whatever is wrong with the arguments is said before weights load."""
    from adamas_cli import models
    from adamas_cli.eval.methods import METHODS as KNOWN
    from adamas_cli.eval.perplexity import measure
    from adamas_cli.terminal.display import Display

    for name in methods:
        if name not in KNOWN:
            raise UsageError(f"--methods {name}: choose from {', '.join(KNOWN)}")
    needed = max(contexts) + scored + 1
    with Display(answers=None, notes=sys.stderr) as display:
        files = models.resolve(
            model.model, dtype=model.dtype, device=model.device, offline=model.offline, progress=display
        )
        ids = {path: _ids(path, files.directory, needed) for path in texts}
        loaded = models.load(
            files,
            device=model.device,
            dtype=model.dtype,
            trust_remote_code=model.trust_remote_code,
            progress=display,
        )
    if needed > loaded.context_length:
        raise OverContextError(
            f"--len {max(contexts):,} and --scored {scored:,} need {needed:,} tokens, and the model's "
            f"context is {loaded.context_length:,}",
            n_prompt_tokens=needed,
            n_ctx=loaded.context_length,
        )
    rows = (
        row
        for path in texts
        for context in contexts
        for row in measure(
            loaded,
            path.name,
            ids[path],
            context=context,
            scored=scored,
            methods=[KNOWN[name] for name in methods],
            budgets=budgets,
            dense_layers=dense_layers,
        )
    )
    total = len(texts) * len(contexts) * (1 + len(methods) * len(budgets))
    for number in range(1, total + 1):
        # Closed before a row is printed, which would otherwise get into its line.
        with (
            Display(answers=None, notes=sys.stderr) as display,
            display.task(f"comparing, row {number} of {total}", None, "rows"),
        ):
            row = next(rows)
        yield files.name, row


def _ids(path: Path, directory: Path, needed: int) -> np.ndarray:
    """The first tokens of a text. Raises UsageError where it cannot be read or is too short."""
    from adamas_cli.prompt.tokens import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--text {path}: {error}") from None
    ids = Tokenizer.from_directory(directory).encode(text[: LONGEST_TOKEN * needed])[:needed]
    if len(ids) < needed:
        raise UsageError(
            f"--text {path}: it has {len(ids):,} tokens, and {needed:,} are needed. Give less --len."
        )
    return ids


def _cells(row: Row) -> list[str]:
    return [
        row.text,
        f"{row.context:,}",
        row.method,
        str(row.budget) if row.budget else "",
        f"{row.kl:.4f}",
        f"{row.kl_low:.4f} to {row.kl_high:.4f}",
        f"{row.top1:.3f}",
        f"{row.perplexity:.2f}",
        f"{row.perplexity_ratio:.3f}",
        f"{row.mass_kept:.3f}",
        f"{row.recall:.3f}",
    ]
