"""The bottom rows of a terminal, redrawn in place below text that is printed once."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.segment import Segment

Line = list[Segment]


def render_lines(console: Console, renderable: RenderableType) -> list[Line]:
    """The lines of a renderable, without blank lines around it and without padding on the right.

    One column stays free, so that a full line does not leave the cursor in a terminal's wrap-pending state.
    """
    options = console.options.update_width(max(1, console.width - 1))
    lines = [_unpadded(line) for line in console.render_lines(renderable, options, pad=False)]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def ansi(console: Console, lines: list[Line]) -> str:
    """The lines with the console's colours as escape codes, joined by line feeds."""
    with console.capture() as capture:
        for number, line in enumerate(lines):
            for text, style, _ in line:
                console.out(text, style=style, end="", highlight=False)
            if number < len(lines) - 1:
                console.out(end="\n")
    return capture.get()


class Region:
    """The rows drawn now, which the next draw erases."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows = 0

    def draw(self, renderables: list[RenderableType]) -> None:
        """Replace the rows; if they are taller than the screen, the top is lost."""
        lines = [line for renderable in renderables for line in render_lines(self._console, renderable)]
        lines = lines[-max(1, self._console.height - 1) :]
        self._write(self._erasure() + ansi(self._console, lines))
        self._rows = len(lines)

    def clear(self) -> None:
        """Erase the rows and leave the cursor where they began."""
        if self._rows:
            self._write(self._erasure())
            self._rows = 0

    def _erasure(self) -> str:
        # Counts the rows as drawn. A terminal that reflows them when it is narrowed keeps a stale fragment;
        # compensating for that would make one that does not reflow lose lines of the answer.
        if not self._rows:
            return ""
        up = f"\x1b[{self._rows - 1}A" if self._rows > 1 else ""
        return f"\r{up}\x1b[J"

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def _unpadded(line: Line) -> Line:
    line = [segment for segment in line if segment.text and not segment.control]
    while line and line[-1].text.isspace() and not (line[-1].style and line[-1].style.bgcolor):
        line.pop()
    if line and not (line[-1].style and line[-1].style.bgcolor):
        last = line.pop()
        line.append(Segment(last.text.rstrip(), last.style))
    return line
