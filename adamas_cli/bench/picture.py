"""Tokens a second by context, as one picture; needs matplotlib and no display."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.bench.measurement import OURS, Record
from adamas_cli.errors import UsageError
from adamas_cli.eval.plots import COLOURS, DPI, LINES, MARKERS, PANEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (".svg", ".png")
SALT = "adamas"  # equal rows give equal files


def require_drawable(path: Path) -> None:
    """Raises UsageError where no picture can be written to this file."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install 'adamas[plot]'")
    if path.suffix not in KINDS:
        raise UsageError(f"--plot {path}: name a file that ends with {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")


def draw(rows: Sequence[Record], path: Path) -> None:
    """Prefill and decode side by side, a line for each engine and attention."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": SALT}):
        figure = Figure(figsize=(2.5 * PANEL, PANEL + 1), layout="constrained")
        names = list(dict.fromkeys(_name(row) for row in rows))
        panels = {"prefill": "n_prompt", "decode": "n_depth"}
        axes = figure.subplots(1, len(panels))
        for panel, (title, length) in zip(axes, panels.items(), strict=True):
            panel.set_title(title, fontsize="medium")
            _lines(panel, [row for row in rows if row[length]], length, names)
        figure.suptitle(f"{rows[0]['model']}, {rows[0]['device']}", fontsize="medium", wrap=True)
        handles, labels = axes[-1].get_legend_handles_labels()  # every line has a decode
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lines(axes: Axes, rows: Sequence[Record], length: str, names: Sequence[str]) -> None:
    lengths = sorted({row[length] for row in rows})
    for index, name in enumerate(names):
        line = [row for row in rows if _name(row) == name]
        if line:
            axes.errorbar(
                [row[length] for row in line],
                [row["avg_ts"] for row in line],
                [row["stddev_ts"] for row in line],
                label=name,
                capsize=3,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                linestyle=LINES[index % len(LINES)],
                markersize=5,
                linewidth=1.3,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{value:,}" for value in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("tokens/s")
    axes.grid(alpha=0.3)


def _name(row: Record) -> str:
    return f"{row['attention']} attention" if row["engine"] == OURS else str(row["engine"])
