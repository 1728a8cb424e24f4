"""`adamas bench`: how fast this machine is, with full and sparse attention and other engines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from adamas_cli.commands.bench import kernels as kernel_bench
from adamas_cli.commands.bench import recorded
from adamas_cli.commands.bench.model import Job
from adamas_cli.commands.bench.shared import parse_batches, tell
from adamas_cli.commands.options import Format, grouped
from adamas_cli.errors import UsageError
from adamas_cli.quiet import prepare_libraries
from adamas_cli.settings import DecodingSettings, ModelSettings


@grouped
def command(
    lengths: Annotated[
        str | None,
        typer.Option("--len", metavar="LIST", help="Context lengths: 4k,16k or 4k-32k, which doubles."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", metavar="NAME", help="Random weights of this shape in place of a model: llama-3.1-8b."
        ),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Read this text instead of random tokens. With --kernels and -m: replay "
            "what the model's layers computed for it (repeatable).",
        ),
    ] = None,
    generated: Annotated[int, typer.Option("-n", "--n-gen", min=1, help="Tokens to decode.")] = 32,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", metavar="LIST", help="Answers that decode together over one document: 1,4,16."
        ),
    ] = None,
    own: Annotated[
        bool,
        typer.Option("--own-documents", help="With --batch: over a document of its own for each answer."),
    ] = False,
    repeats: Annotated[
        int,
        typer.Option(
            "-r",
            "--repetitions",
            min=1,
            help="Repeats of each decode or replay, and of prefills under 5 s.",
        ),
    ] = 5,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--vs", metavar="ENGINE", help="Compare with llama.cpp (same file) or transformers (repeatable)."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw the rows as .svg or .png (pip install 'adamas\\[plot]')."
        ),
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="Measure one sparse decode step of a layer, beside full attention."),
    ] = False,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            metavar="LIST",
            help="With --kernels: query heads/KV heads x head_dim, such as 32/8x128,14/2x64; with --text, "
            "layers built from recorded heads.",
        ),
    ] = None,
    break_even: Annotated[
        bool,
        typer.Option(
            "--break-even/--no-break-even",
            help="With --kernels: find the context from which sparse is faster.",
        ),
    ] = True,
    form: Format = "md",
    *,
    context: typer.Context,
    model: ModelSettings,
    attention: DecodingSettings,
) -> None:
    """Measure this machine: adamas bench --len 4k,16k, or adamas bench --kernels

    A document of each length is read once and answered with full attention and with Adamas, in turn.

    Peak memory is that of the process so far; the shortest length comes first.

    With --kernels, full attention is the fastest kernel that runs here; both sides are warmed up.

    With --kernels, -m and --text, steps are replayed on what the model's layers saw, beside random data.
    """
    environment = dict(os.environ)  # other engines get the user's environment, without the changes made below
    if kernels:
        _exclude("--kernels", {"--shape": shape, "--vs": others, "--plot": plot, "--batch": batch})
        if texts or _given(context, "model"):
            if model.model is None or not texts:
                raise UsageError("--kernels replays a model on a text: give both -m and --text, or neither")
            prepare_libraries(verbose=0, offline=model.offline)
            tell(recorded.Job(texts, heads, lengths, repeats, model, attention).measure(), form)
            return
        prepare_libraries(verbose=0, offline=True)
        tell(kernel_bench.measure(heads, lengths, break_even, model, attention), form)
        return
    if lengths is None:
        raise UsageError(
            "name what to measure, for example: adamas bench --kernels, or adamas bench --len 4k,16k"
        )
    _exclude("--len without --kernels", {"--heads": heads, "more than one --text": (texts or [])[1:]})
    prepare_libraries(verbose=0, offline=model.offline)
    if plot is not None:
        from adamas_cli.lab.bench.picture import require_drawable

        require_drawable(plot)
    text = texts[0] if texts else None
    batches = parse_batches(batch) if batch else []
    job = Job(lengths, shape, text, generated, repeats, others or [], environment, batches, own)
    rows = tell(job.measure(model, attention), form)
    if plot is not None:
        from adamas_cli.lab.bench.picture import draw

        draw([row for row in rows if row.get("n_sequences", 1) == 1], plot)


def _exclude(chosen: str, others: dict[str, object]) -> None:
    """Raises UsageError if one of the other flags is given too."""
    for flag, value in others.items():
        if value:
            raise UsageError(f"{flag} does not work with {chosen}")


def _given(context: typer.Context, name: str) -> bool:
    """Whether a flag was given on the command line, not by the environment or the configuration."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
