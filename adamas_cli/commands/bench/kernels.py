"""`adamas bench --kernels`: one sparse decode step of a layer against full attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from adamas_cli.commands.bench.shared import Record, parse_lengths, say
from adamas_cli.errors import UsageError

if TYPE_CHECKING:
    from adamas_cli.lab.bench.kernels import KernelBench, KernelRow, Shape
    from adamas_cli.settings import DecodingSettings, ModelSettings

GPU_SHAPES, GPU_LENGTHS = "32/32x128,32/8x128", "32k,128k"
CPU_SHAPES, CPU_LENGTHS = "14/2x64,9/3x64", "4k,8k,16k,32k"
BUDGET = 128
TITLES = ("heads", "context", "attended", "full, us", "by", "sparse, us", "ratio")
STAGE_TITLES = ("enter", "estimate", "attend", "codes, GB/s", "of copy")  # if a step is several launches


def measure(
    shapes: str | None,
    lengths: str | None,
    break_even: bool,
    model: ModelSettings,
    attention: DecodingSettings,
) -> Iterator[tuple[Record, str]]:
    """Yield figures as they are measured, as records and as Markdown lines. Raises UsageError."""
    bench, chosen, contexts = _prepare(shapes, lengths, model, attention)
    yield from _measure(bench, chosen, contexts, break_even)


def _prepare(
    shapes: str | None, lengths: str | None, model: ModelSettings, attention: DecodingSettings
) -> tuple[KernelBench, list[Shape], list[int]]:
    import torch
    from adamas_kernels.dispatch import load

    from adamas_cli.engine.attention import backends_of, sparse_settings
    from adamas_cli.lab.bench.clock import copy_bandwidth
    from adamas_cli.lab.bench.kernels import KernelBench
    from adamas_cli.lab.hardware import device_name
    from adamas_cli.machine.threads import use_threads
    from adamas_cli.models.device import choose_device, choose_dtype

    if model.threads:
        use_threads(model.threads)
    place = choose_device(model.device)
    on_gpu = place.type == "cuda"
    name, reason = backends_of(place).pick(attention.backend)
    if reason:
        say(reason)
    number = torch.float16 if model.dtype == "auto" and on_gpu else choose_dtype(model.dtype, place)
    bench = KernelBench(
        load(name, say),
        place,
        number,
        sparse_settings(attention, attention.budget or BUDGET),
        device_name(place),
        copy_bandwidth(place),
    )
    contexts = parse_lengths(lengths or (GPU_LENGTHS if on_gpu else CPU_LENGTHS))
    return bench, parse_shapes(shapes or (GPU_SHAPES if on_gpu else CPU_SHAPES)), contexts


def parse_shapes(text: str) -> list[Shape]:
    """The shapes of a list such as `32/8x128,14/2x64`. Raises UsageError."""
    from adamas_cli.lab.bench.kernels import Shape

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
) -> Iterator[tuple[Record, str]]:
    """Each measurement as a record and as a Markdown line; a line about the machine comes first."""
    import torch

    from adamas_cli.lab.bench.table import markdown_head, markdown_row

    number = str(bench.dtype).removeprefix("torch.")
    about = (
        f"{bench.name}; torch {torch.__version__}; {bench.backend.name} backend, {bench.settings.scorer}, "
        f"budget {bench.settings.budget}, {number}; copy {bench.copy / 1e9:,.0f} GB/s"
    )
    titles = TITLES + STAGE_TITLES if bench.backend.name == "triton" else TITLES
    machine: Record = {
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
            words = f"from {found:,} tokens" if found else "at none of the measured lengths"
            line = f"{shape}: a sparse step is faster {words}"
            yield {"shape": str(shape), "break_even": found}, line if number_of else f"\n{line}"


def _cells(row: KernelRow) -> list[str]:
    def number(value: float | None, digits: int = 1) -> str:
        return f"{value or 0:,.{digits}f}"

    cells = [
        row.shape,
        f"{row.context:,}",
        number(row.attended, 0),
        number(row.dense),
        row.dense_kernel,
        number(row.step),
        f"{row.ratio:.2f}x",
    ]
    if row.enter is None or row.code_bytes_per_s is None or row.share_of_copy is None:
        return cells
    stages = [number(stage) for stage in (row.enter, row.estimate, row.attend)]
    return [*cells, *stages, number(row.code_bytes_per_s / 1e9, 0), f"{row.share_of_copy:.0%}"]
