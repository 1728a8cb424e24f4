"""`adamas bench`: what this machine reaches, beside what full attention takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adamas_cli.errors import UsageError
from adamas_cli.options import Backend, Budget, Device, Format, Scorer, parse_length
from adamas_cli.quiet import prepare_libraries

if TYPE_CHECKING:
    from adamas_cli.bench.kernels import KernelBench, KernelRow, Shape

GPU_SHAPES, GPU_LENGTHS = "32/32x128,32/8x128", "32k,128k"
CPU_SHAPES, CPU_LENGTHS = "14/2x64,9/3x64", "4k,8k,16k,32k"
TITLES = ("heads", "context", "full, us", "by", "sparse, us", "ratio")
STAGE_TITLES = ("enter", "estimate", "attend", "codes, GB/s", "of copy")  # where a step is several launches


def command(
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="One sparse decode step of a layer against full attention."),
    ] = False,
    shapes: Annotated[
        str | None,
        typer.Option(
            "--heads", metavar="LIST", help="Query heads/KV heads x head_dim, such as 32/8x128,14/2x64."
        ),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option("--len", metavar="LIST", help="Context lengths, such as 32k,128k.")
    ] = None,
    budget: Budget = 128,
    scorer: Scorer = "dot",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="Number format of keys and values; auto is float16 on a GPU."),
    ] = "auto",
    break_even: Annotated[
        bool,
        typer.Option("--break-even/--no-break-even", help="Find the context from which sparse is faster."),
    ] = True,
    form: Format = "md",
) -> None:
    """Measure this machine: adamas bench --kernels

    Full attention is the fastest kernel that runs here; both sides are warmed up.
    """
    if not kernels:
        raise UsageError("say what to measure, as in: adamas bench --kernels")
    prepare_libraries(verbose=0, offline=True)
    from adamas_cli.bench.table import csv_lines, json_line

    bench, chosen, contexts = _prepare(shapes, lengths, budget, scorer, backend, device, dtype)
    records = []
    for record, line in _measure(bench, chosen, contexts, break_even):
        records.append(record)
        if form == "md":
            print(line, flush=True)
        elif form == "jsonl":
            print(json_line(record), flush=True)
    if form == "json":
        print(json.dumps(records, ensure_ascii=False, indent=2))
    elif form == "csv":
        print(csv_lines([record for record in records if "step" in record]))


def _prepare(
    shapes: str | None,
    lengths: str | None,
    budget: int,
    scorer: str,
    backend: str,
    device: str,
    dtype: str,
) -> tuple[KernelBench, list[Shape], list[int]]:
    import torch
    from adamas_kernels.dispatch import BackendError, load, pick
    from adamas_kernels.ops import SparseSettings

    from adamas_cli.bench.clock import copy_bandwidth, device_name
    from adamas_cli.bench.kernels import KernelBench
    from adamas_cli.models.device import choose_device, choose_dtype

    place = choose_device(device)
    on_gpu = place.type == "cuda"
    try:
        name, reason = pick(backend, place)
    except BackendError as error:
        raise UsageError(f"{error}. Use --backend auto.") from None
    if reason:
        _say(reason)
    number = torch.float16 if dtype == "auto" and on_gpu else choose_dtype(dtype, place)
    bench = KernelBench(
        load(name, _say),
        place,
        number,
        SparseSettings(budget=budget, scorer=scorer),
        device_name(place),
        copy_bandwidth(place),
    )
    texts = (lengths or (GPU_LENGTHS if on_gpu else CPU_LENGTHS)).split(",")
    contexts = [parse_length(text) for text in texts]
    if min(contexts) < 1:
        raise UsageError("--len: a context has at least one token")
    return bench, _shapes(shapes or (GPU_SHAPES if on_gpu else CPU_SHAPES)), contexts


def _shapes(text: str) -> list[Shape]:
    from adamas_cli.bench.kernels import Shape

    found = []
    for item in text.split(","):
        heads, _, dim = item.partition("x")
        parts = [*heads.split("/"), dim or "128"]
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise UsageError(f"--heads {item}: write query heads/KV heads x head_dim, such as 32/8x128")
        shape = Shape(*map(int, parts))
        if shape.heads % shape.kv_heads:
            raise UsageError(f"--heads {item}: {shape.heads} is not a multiple of {shape.kv_heads}")
        found.append(shape)
    return found


def _measure(
    bench: KernelBench, shapes: list[Shape], contexts: list[int], break_even: bool
) -> Iterator[tuple[dict[str, object], str]]:
    """Each measurement as a record and as a line of Markdown; a line about the machine comes first."""
    import torch

    from adamas_cli.bench.table import markdown_head, markdown_row

    number = str(bench.dtype).removeprefix("torch.")
    about = (
        f"{bench.name}; torch {torch.__version__}; {bench.backend.name} backend, {bench.settings.scorer}, "
        f"budget {bench.settings.budget}, {number}; copy {bench.copy / 1e9:,.0f} GB/s"
    )
    titles = TITLES + STAGE_TITLES if bench.backend.name == "triton" else TITLES
    machine: dict[str, object] = {
        "device": bench.name,
        "torch": torch.__version__,
        "backend": bench.backend.name,
        "copy_bytes_per_s": bench.copy,
    }
    yield machine, f"{about}\n\n{markdown_head(titles)}"
    for shape in shapes:
        for context in contexts:
            row = bench.row(shape, context)
            yield asdict(row), markdown_row(_cells(row))
    if break_even:
        for number_of, shape in enumerate(shapes):
            found = bench.break_even(shape)
            words = f"from {found:,} tokens" if found else "at no length measured"
            line = f"{shape}: a sparse step is faster {words}"
            yield {"shape": str(shape), "break_even": found}, line if number_of else f"\n{line}"


def _cells(row: KernelRow) -> list[str]:
    def number(value: float | None, digits: int = 1) -> str:
        return f"{value or 0:,.{digits}f}"

    cells = [
        row.shape,
        f"{row.context:,}",
        number(row.dense),
        row.dense_kernel,
        number(row.step),
        f"{row.ratio:.2f}x",
    ]
    if row.enter is None or row.code_bytes_per_s is None or row.share_of_copy is None:
        return cells
    stages = [number(stage) for stage in (row.enter, row.estimate, row.attend)]
    return [*cells, *stages, number(row.code_bytes_per_s / 1e9, 0), f"{row.share_of_copy:.0%}"]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
