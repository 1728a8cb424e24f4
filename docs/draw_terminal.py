"""Draw the README's picture of a terminal from a real run, on a light and a dark background.

    python docs/draw_terminal.py [FOLDER]

The default model answers a question about the beginning of *Pride and Prejudice*, which is not in the store:
a frame from the middle of its reading, and its answer. Writes terminal-light.svg and terminal-dark.svg.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI, TerminalTheme
from rich.text import Text

COLUMNS, LINES = 92, 16
PAUSE = 0.2  # seconds between two captures of the screen
EXAMPLES = Path(__file__).parent / "examples"
COMMAND = [
    "ask", "pride-and-prejudice-1-4.txt",
    "What is the name of the gentleman who has taken Netherfield Park?", "--sources", "2",
]  # fmt: skip
THEMES: dict[str, TerminalTheme] = {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}


def seen(screen: pyte.Screen) -> list[Text]:
    """The lines of a screen up to the last non-empty one."""
    lines = [line_of(screen.buffer[row]) for row in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def line_of(cells: dict[int, pyte.screens.Char]) -> Text:
    """A line with its colours."""
    line = Text()
    for look, run in groupby(
        (cells[column] for column in range(COLUMNS)), lambda c: (c.fg, c.bold, c.italics)
    ):
        colour, bold, italic = look
        line.append(
            "".join(cell.data for cell in run), Style(color=colour_of(colour), bold=bold, italic=italic)
        )
    line.rstrip()
    return line


def colour_of(name: str) -> str | None:
    """Rich's name for a pyte colour."""
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):
        return f"#{name}"
    return {"brown": "yellow", "brightbrown": "bright_yellow"}.get(name, name.replace("bright", "bright_"))


def record() -> tuple[list[Text], list[Text]]:
    """The screen in the middle of the reading, and at the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    frames = []
    with tempfile.TemporaryDirectory() as kept:
        child = pexpect.spawn(
            str(Path(sys.executable).parent / "adamas"), COMMAND, cwd=str(EXAMPLES), encoding="utf-8",
            dimensions=(LINES, COLUMNS),
            env={**os.environ, "ADAMAS_DOC_CACHE": kept, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )  # fmt: skip
        while True:
            try:
                stream.feed(child.read_nonblocking(1 << 16, timeout=PAUSE))
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                break
            frames.append(seen(screen))
        child.wait()
    reading = [frame for frame in frames if any("tok/s" in line.plain for line in frame)]
    return reading[len(reading) // 2], seen(screen)


def main(folder: str = str(Path(__file__).parent / "plots")) -> None:
    """Draw both pictures of one run."""
    reading, answered = record()
    prompt = Text(f'$ adamas {COMMAND[0]} {COMMAND[1]} "{COMMAND[2]}" {" ".join(COMMAND[3:])}', "bold")
    for name, theme in THEMES.items():
        console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        for line in (prompt, *reading, Text("⋮", "dim"), *answered):
            console.print(line)
        console.save_svg(str(Path(folder) / f"terminal-{name}.svg"), title="adamas", theme=theme)


if __name__ == "__main__":
    main(*sys.argv[1:])
