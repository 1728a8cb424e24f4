"""Tokens per second and milliseconds per token by context, as one picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamas_cli.errors import UsageError
from adamas_cli.lab.bench.measurement import OURS, Record
from adamas_cli.lab.style import DPI, PANEL, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".svg", ".png")
SALT = "adamas"  # equal rows give equal files


def require_drawable(path: Path) -> None:
    """Raises UsageError if no picture can be written to this file."""
    if find_spec("matplotlib") is None:
        raise UsageError("`plot` needs matplotlib, which is not installed: pip install 'adamas[plot]'")
    if path.suffix not in KINDS:
        raise UsageError(f"`plot` {path}: name a file that ends with {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"`plot` {path}: there is no folder {path.parent}")


def draw(rows: Sequence[Record], path: Path) -> None:
    """Prefill and decode side by side, with a line for each engine and attention, and the time per token
    beside the time to copy the bytes that it reads.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": SALT}):
        figure = Figure(figsize=(3.75 * PANEL, PANEL + 1), layout="constrained")
        names = list(dict.fromkeys(_name(row) for row in rows))
        read, decode, token = figure.subplots(1, 3)
        read.set_title("prefill", fontsize="medium")
        _lines(read, [row for row in rows if row["n_prompt"]], "n_prompt", names)
        decoded = [row for row in rows if row["n_depth"]]
        decode.set_title("decode", fontsize="medium")
        _lines(decode, decoded, "n_depth", names)
        token.set_title("time of a token; dotted: copying what it reads", fontsize="medium")
        _token_times(token, decoded, names)
        figure.suptitle(f"{rows[0]['model']}, {rows[0]['device']}", fontsize="medium", wrap=True)
        lines: dict[str, Any] = {}  # by name: some have only a prefill, others only a decode
        for axes in (read, decode):
            lines |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lines(axes: Axes, rows: Sequence[Record], length: str, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        line = [row for row in rows if _name(row) == name]
        if line:
            axes.errorbar(
                [row[length] for row in line],
                [row["avg_ts"] for row in line],
                [row["stddev_ts"] for row in line],
                label=name,
                capsize=3,
                **style(index),
            )
    _frame(axes, sorted({row[length] for row in rows}), "tokens/s")


def _token_times(axes: Axes, rows: Sequence[Record], names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        line = [row for row in rows if _name(row) == name]
        lengths = [row["n_depth"] for row in line]
        if line:
            axes.plot(lengths, [1e3 / row["avg_ts"] for row in line], **style(index))
        if line and line[0]["copy_floor_s"] is not None:
            floors = [1e3 * row["copy_floor_s"] for row in line]
            axes.plot(lengths, floors, color=style(index)["color"], linestyle=":", linewidth=1)
    _frame(axes, sorted({row["n_depth"] for row in rows}), "ms per token")


def _frame(axes: Axes, lengths: Sequence[int], unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{value:,}" for value in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)


def _name(row: Record) -> str:
    return f"{row['attention']} attention" if row["engine"] == OURS else str(row["engine"])
