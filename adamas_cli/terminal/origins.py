"""How the origins of an answer are shown: a heat strip of the documents, passages, quotations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from adamas_cli.sanitize import one_line
from adamas_cli.sources.passages import Passage, Sources
from adamas_cli.sources.quotes import Quote

NOTICE = "most-attended passages (not evidence)"
HEIGHTS = " ▁▂▃▄▅▆▇█"
LONGEST_STRIP = 100  # columns
NARROW = 60  # with fewer columns left, an excerpt gets its own line


def heat_strip(sources: Sources, width: int) -> Text:
    """All documents from start to end in one line, higher where they were attended to more."""
    label = "attended "
    columns = max(1, min(LONGEST_STRIP, width - len(label) - 2, len(sources.strip)))
    edges = [round(column * len(sources.strip) / columns) for column in range(columns + 1)]
    peaks = [max(sources.strip[a : max(b, a + 1)]) for a, b in itertools.pairwise(edges)]
    bars = "".join(HEIGHTS[_height(peak)] for peak in peaks)
    return Text(f"{label}▕{bars}▏", style="dim", no_wrap=True, overflow="crop")


def passage_lines(passages: Sequence[Passage], width: int | None) -> list[str]:
    """The notice, and a line for each passage: share, place, excerpt. width: of the terminal; excerpts are
    cut to it.
    """
    if not passages:
        return [f"{NOTICE}: nothing in the documents"]
    places = [one_line(passage.place) for passage in passages]
    longest = max(cell_len(place) for place in places)
    lines = [f"{NOTICE}:"]
    for passage, place in zip(passages, places, strict=True):
        excerpt = one_line(passage.excerpt)
        head = f"{passage.share:5.0%}  {place}"
        if width is not None and width - longest < NARROW:
            lines += [head, "       " + _cut(excerpt, width - 7)]
        else:
            head += " " * (longest - cell_len(place)) + "  "
            lines.append(head + (excerpt if width is None else _cut(excerpt, width - cell_len(head))))
    return lines


def quote_lines(quotes: Sequence[Quote]) -> list[str]:
    """A line for each quotation: whether the documents hold it word for word, and where."""
    if not quotes:
        return ["the answer quotes nothing"]
    lines = []
    for quote in quotes:
        text = one_line(quote.text)
        if quote.verified:
            place = (
                f"{quote.path}:{quote.line}" if quote.section is None else f"{quote.path}, {quote.section}"
            )
            lines.append(f'✓ {one_line(place)}: "{text}"')
        else:
            lines.append(f'✗ not in the documents: "{text}"')
    return lines


def _height(share: float) -> int:
    """The height of a bar: the square root keeps the less attended parts visible."""
    return min(len(HEIGHTS) - 1, round(share**0.5 * (len(HEIGHTS) - 1)))


def _cut(text: str, width: int) -> str:
    line = Text(text)
    line.truncate(max(8, width - 1), overflow="ellipsis")
    return line.plain
