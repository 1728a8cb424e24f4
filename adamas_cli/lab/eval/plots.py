"""Pictures of the rows, as SVG and PNG; needs matplotlib and no display.

Heat maps use cividis, which is readable with any kind of colour vision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.lab.eval.ledger import Record
from adamas_cli.lab.eval.reading import FULL
from adamas_cli.lab.style import DPI, PANEL, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]


def draw_retrieval(rows: Sequence[Record], directory: Path) -> list[Path]:
    """For each task and way to read the question: scores by depth and length, one panel for each method at a
    budget.
    """
    written = []
    kinds = list(dict.fromkeys(row["question"] for row in rows if row["method"] != FULL)) or ["dense"]
    for task in dict.fromkeys(row["task"] for row in rows):
        for kind in kinds:
            chosen = [
                row
                for row in rows
                if row["task"] == task and (row["question"] == kind or row["method"] == FULL)
            ]
            written += _heat_maps(chosen, f"retrieval-{task}-{kind}-question", kind, directory)
    return written


def draw_perplexity(rows: Sequence[Record], directory: Path) -> list[Path]:
    """For each text and length: perplexity ratio and KL divergence by budget, and recall by layer."""
    written = []
    for text, context in dict.fromkeys((row["text"], row["context"]) for row in rows):
        chosen = [row for row in rows if (row["text"], row["context"]) == (text, context)]
        sparse = [row for row in chosen if row["method"] != FULL]
        if not sparse:
            continue
        about = f"{_about(chosen)}, {context:,} tokens of context, {chosen[0]['scored']:,} compared"
        name = f"ppl-{Path(text).stem}-{context}"
        panels = [
            _by_budget(sparse, "perplexity_ratio", "perplexity, times that of full attention", 1.0, log=True),
            _by_budget(sparse, "kl", "KL divergence from full attention, nats", None, log=True),
        ]
        written += _figure(panels, ["perplexity ratio", "divergence"], about, f"{name}-by-budget", directory)
        budgets = list(dict.fromkeys(row["budget"] for row in sparse))
        panels = [_by_layer([row for row in sparse if row["budget"] == budget]) for budget in budgets]
        titles = [f"budget {budget} tokens" for budget in budgets]
        written += _figure(panels, titles, about, f"{name}-recall-by-layer", directory)
    return written


def draw_answers(rows: Sequence[Record], directory: Path) -> list[Path]:
    """How close the answers are to full attention's and to known ones, by budget."""
    sparse = [row for row in rows if row["method"] != FULL]
    full = next(row for row in rows if row["method"] == FULL)
    wanted = {
        "equal": "share of answers equal to full attention's",
        "f1_full": "F1 of tokens with full attention's answer",
        "contains": "share of answers that hold a known one",
    }
    shown = {key: label for key, label in wanted.items() if full[key] is not None}
    if not sparse:
        return []
    panels = [_by_budget(sparse, key, label, full[key], share=True) for key, label in shown.items()]
    about = f"{_about(rows)}, {full['answers']} questions"
    return _figure(panels, [""] * len(panels), about, "answers-by-budget", directory)


def _about(rows: Sequence[Record]) -> str:
    one = rows[0]
    return f"{one['model']}, {one['text']}, first {one['dense_layers']} layers dense"


def _heat_maps(rows: Sequence[Record], name: str, kind: str, directory: Path) -> list[Path]:
    with_depth = [row for row in rows if row["depth"] is not None]
    shown = with_depth or rows
    depths = sorted({row["depth"] for row in shown}, key=lambda depth: depth or 0)
    lengths = sorted({row["context"] for row in shown})
    labels = ["spread" if depth is None else str(depth) for depth in depths]
    panels: list[Draw] = []
    titles = []
    for method, budget in dict.fromkeys((row["method"], row["budget"]) for row in shown):
        scores = {
            (row["depth"], row["context"]): row["score"]
            for row in shown
            if (row["method"], row["budget"]) == (method, budget)
        }
        grid = [[scores[depth, length] for length in lengths] for depth in depths]
        panels.append(_heat_map(grid, [f"{length:,}" for length in lengths], labels))
        titles.append(f"{method}, budget {budget} tokens" if budget else "full attention")
    asked = "with full attention" if kind == "dense" else "sparsely"
    about = f"{rows[0]['task']}: {_about(rows)}, question read {asked}, samples: {rows[0]['samples']}"
    return _figure(panels, titles, about, name, directory, scale="score (share of the answer found)")


def _heat_map(grid: list[list[float]], lengths: Sequence[str], depths: Sequence[str]) -> Draw:
    def draw(axes: Axes) -> None:
        axes.imshow(grid, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), depths)
        axes.set_xlabel("context, tokens")
        axes.set_ylabel("depth, % of the document")
        axes.set_xticks([x - 0.5 for x in range(1, len(lengths))], minor=True)
        axes.set_yticks([y - 0.5 for y in range(1, len(depths))], minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        for y, line in enumerate(grid):
            for x, score in enumerate(line):
                axes.text(
                    x, y, f"{score:.2f}", ha="center", va="center", color="black" if score > 0.5 else "white"
                )

    return draw


def _by_budget(
    rows: Sequence[Record],
    key: str,
    label: str,
    full: float | None,
    *,
    log: bool = False,
    share: bool = False,
) -> Draw:
    def plain(value: float, position: float) -> str:
        """Label only a few numbers between powers of ten, so that labels do not overlap."""
        return f"{value:g}" if f"{value:e}"[0] in "25" else ""

    def draw(axes: Axes) -> None:
        budgets = sorted({row["budget"] for row in rows})
        for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            line = sorted((row for row in rows if row["method"] == method), key=lambda row: row["budget"])
            middle = [row[key] for row in line]
            below = [max(0.0, row[key] - row[f"{key}_low"]) for row in line]
            above = [max(0.0, row[f"{key}_high"] - row[key]) for row in line]
            axes.errorbar(
                [row["budget"] for row in line],
                middle,
                [below, above],
                label=method,
                capsize=3,
                **style(index),
            )
        if full is not None:
            axes.axhline(full, color="grey", linewidth=1, label="full attention")
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.minorticks_off()
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(plain)
        if share:
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("budget, tokens per query head")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)

    return draw


def _by_layer(rows: Sequence[Record]) -> Draw:
    def draw(axes: Axes) -> None:
        for index, row in enumerate(rows):
            recall = row["recall_by_layer"]
            axes.plot(range(len(recall)), recall, label=row["method"], **style(index))
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("sparse layer, in the model's order")
        axes.set_ylabel("recall of the true top-k, share")
        axes.grid(alpha=0.3)

    return draw


def _figure(
    panels: Sequence[Draw], titles: Iterable[str], about: str, name: str, directory: Path, scale: str = ""
) -> list[Path]:
    """Panels side by side, at most three in a row, with one legend or, for heat maps, one scale."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    from matplotlib.figure import Figure  # an extra that only pictures need

    figure = Figure(figsize=(max(2, columns) * PANEL * 1.25, lines * PANEL + 1), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, draw, title in zip(grid, panels, titles, strict=False):
        draw(axes)
        axes.set_title(title, fontsize="medium")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(about, fontsize="medium", wrap=True)
    if scale:
        figure.colorbar(grid[0].images[0], ax=list(grid), label=scale)
    else:
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    directory.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "_", name)
    paths = [directory / f"{stem}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=DPI)
    return paths
