"""The line style of all pictures. Okabe and Ito's colours suit any kind of colour vision; lines also differ
in marker and dashes.
"""

from __future__ import annotations

from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*P"
LINES = ("-", "--", "-.", ":")
PANEL = 3.4  # inches
DPI = 150


def style(index: int) -> dict[str, Any]:
    """The style of line number `index`, the same in every picture."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
        "markersize": 5,
        "linewidth": 1.3,
    }
