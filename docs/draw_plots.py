"""Draw the plots of docs/performance.md and docs/accuracy.md from the tables on those pages.

    python docs/draw_plots.py [FOLDER]

Each plot is drawn from one table: the first column holds x, and a heading `panel, line` names the panel and
the line of a column. Empty cells are skipped. The files hold text and styles for light and dark pages.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
PANEL, HEIGHT = 300, 190  # of a panel's field, in pixels
LEFT, TOP, RIGHT, BOTTOM = 76, 74, 14, 46  # around each field
GROW = 1.12  # room above the largest value
FONT = "12px -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
COLOURS = {  # of each line, on a light and on a dark page
    "llama.cpp": ("#b35900", "#f0a35e"),
    "full attention": ("#1a7f5a", "#5fd0a5"),
    "adamas": ("#0b61b8", "#6cb6ff"),
    "true top-k": ("#b35900", "#f0a35e"),
    "read": ("#b35900", "#f0a35e"),
    "read sparsely": ("#1a7f5a", "#5fd0a5"),
    "kept": ("#0b61b8", "#6cb6ff"),
}
DASHES = {
    "llama.cpp": "2 3",
    "true top-k": "2 3",
    "read": "2 3",
    "full attention": "7 4",
    "read sparsely": "7 4",
}


@dataclass(frozen=True)
class Plot:
    """A plot, the heading above its table, and its axes."""

    name: str
    page: str
    heading: str
    x: str
    y: str
    log_y: bool = False


PLOTS = [
    Plot("speed-cpu", "performance.md", "Beside llama.cpp on a CPU", "context, tokens", "tokens/s"),
    Plot("speed-gpu", "performance.md", "Beside llama.cpp on a GPU", "context, tokens", "tokens/s"),
    Plot("first-word", "performance.md", "Time to the first word", "document, tokens", "seconds", log_y=True),
    Plot(
        "budget", "accuracy.md", "Divergence by budget", "budget, tokens", "KL divergence, nats", log_y=True
    ),
]
Lines = dict[str, dict[str, list[tuple[float, float]]]]  # panel -> line -> points


def table_below(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its header first."""
    text = (DOCS / page).read_text(encoding="utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}\n", text, maxsplit=1, flags=re.MULTILINE)[1]
    table = re.search(r"(^\|.*\n)+", below, re.MULTILINE)
    assert table, f"{page}: no table below {heading}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
    return [rows[0], *rows[2:]]


def number(cell: str) -> float:
    """The first number of a cell; K means 1,024."""
    digits, unit = re.match(r"([\d,.]+)(K?)", cell.strip("*")).groups()  # type: ignore[union-attr]
    return float(digits.replace(",", "")) * (1024 if unit else 1)


def lines_of(plot: Plot) -> Lines:
    """The points of each line of each panel."""
    header, *rows = table_below(plot.page, plot.heading)
    found: Lines = {}
    for column, title in enumerate(header[1:], start=1):
        panel, line = title.split(", ", 1)
        points = [(number(row[0]), number(row[column])) for row in rows if row[column]]
        found.setdefault(panel, {})[line] = points
    return found


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values between two bounds: 1, 2, 5 times powers of ten, or at most seven even steps from zero."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        return [y for n in powers for y in (10.0**n, 2 * 10.0**n, 5 * 10.0**n) if low <= y <= high]
    step = 10 ** math.floor(math.log10(high / 4))
    step = next(step * m for m in (1, 2, 5, 10) if high / (step * m) <= 7)
    return [step * n for n in range(int(high / step) + 1)]


def short(value: float) -> str:
    """A number as shown on an axis: multiples of 1,024 in K."""
    return f"{value / 1024:g}K" if value >= 1024 and value % 1024 == 0 else f"{value:,.10g}"


def bounds(panels: Lines) -> tuple[float, float]:
    """The smallest and the largest y of some panels, with room around them."""
    values = [y for lines in panels.values() for line in lines.values() for _, y in line]
    return min(values) / GROW, max(values) * GROW


def panel_svg(plot: Plot, title: str, panels: Lines, left: float) -> list[str]:
    """One field with its axes and lines, its left edge at `left`. Logarithmic panels share a scale."""
    lines = panels[title]
    xs = sorted({x for line in lines.values() for x, _ in line})
    low_x, high_x = math.log2(xs[0]), math.log2(xs[-1])
    least, largest = bounds(panels if plot.log_y else {title: lines})
    bottom = TOP + HEIGHT

    def across(x: float) -> float:
        return left + 10 + (PANEL - 20) * (math.log2(x) - low_x) / (high_x - low_x)

    def up(y: float) -> float:
        if plot.log_y:
            return bottom - HEIGHT * math.log(y / least) / math.log(largest / least)
        return bottom - HEIGHT * y / largest

    middle = left + PANEL / 2
    parts = [f'<text x="{middle}" y="{TOP - 12}" text-anchor="middle" class="title">{escape(title)}</text>']
    for y in ticks(least, largest, plot.log_y):
        parts.append(f'<path d="M{left} {up(y):.1f}h{PANEL}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in xs:
        label = short(x)
        parts.append(f'<text x="{across(x):.1f}" y="{bottom + 17}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(plot.x)}</text>')
    turned = f'transform="translate({left - 60} {TOP + HEIGHT / 2}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(plot.y)}</text>')
    for name, line in lines.items():
        places = [(across(x), up(y)) for x, y in line]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="{path}" class="line {class_of(name)}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" class="{class_of(name)}"/>' for x, y in places]
    return parts


def class_of(name: str) -> str:
    """The style class of a line."""
    return re.sub(r"\W+", "-", name)


def style_of(names: list[str]) -> str:
    """Style rules for the drawn lines, for light and dark pages."""

    def rules(shade: int, ink: str, grid: str) -> str:
        inks = "".join(
            f".{class_of(n)}{{stroke:{COLOURS[n][shade]};fill:{COLOURS[n][shade]}}}" for n in names
        )
        return f"text{{fill:{ink}}}.grid{{stroke:{grid}}}{inks}"

    dashes = "".join(f".line.{class_of(n)}{{stroke-dasharray:{DASHES[n]}}}" for n in names if n in DASHES)
    dark = rules(1, "#c9d1d9", "#30363d")
    return (
        f"text{{font:{FONT}}}.title{{font-weight:600}}{rules(0, '#24292f', '#d0d7de')}"
        f"@media(prefers-color-scheme:dark){{{dark}}}"
        f".grid{{fill:none}}.line{{fill:none!important;stroke-width:2}}{dashes}"
    )


def svg_of(plot: Plot, panels: Lines) -> str:
    """The whole picture: a legend above the panels."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    width = len(panels) * (LEFT + PANEL + RIGHT)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + BOTTOM}" role="img">',
        f"<title>{escape(plot.heading)}: {escape(plot.y)} by {escape(plot.x)}</title>",
        f"<style>{style_of(names)}</style>",
    ]
    for index, name in enumerate(names):
        x = LEFT + index * 150
        parts.append(f'<path d="M{x} 22h28" class="line {class_of(name)}"/>')
        parts.append(f'<circle cx="{x + 14}" cy="22" r="3.2" class="{class_of(name)}"/>')
        parts.append(f'<text x="{x + 36}" y="26">{escape(name)}</text>')
    for index, title in enumerate(panels):
        parts += panel_svg(plot, title, panels, LEFT + index * (LEFT + PANEL + RIGHT))
    return "\n".join([*parts, "</svg>", ""])


def main(folder: str = str(DOCS / "plots")) -> None:
    """Write every plot."""
    for plot in PLOTS:
        (Path(folder) / f"{plot.name}.svg").write_text(svg_of(plot, lines_of(plot)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
