"""The two ways an answer is printed: the model's own text, or Markdown drawn block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.text import Text

from adamas_cli.terminal.markdown import Block, BlockStream
from adamas_cli.terminal.region import Line, render_lines


class PlainAnswers:
    """Prints answers as they arrive; each ends with a line feed, and a blank line separates two."""

    def __init__(self, stream: TextIO, make_room: Callable[[], None]) -> None:
        self._stream = stream
        self._make_room = make_room
        self._last: str | None = None  # the last character of the current answer
        self._between = False

    def say(self, text: str) -> None:
        """Print a piece of the answer."""
        self._make_room()
        if self._between:
            self._stream.write("\n")
            self._between = False
        self._stream.write(text)
        self._stream.flush()
        self._last = text[-1]

    def finish(self) -> None:
        """End the answer."""
        if self._last is None:
            return
        if self._last != "\n":
            self._stream.write("\n")
            self._stream.flush()
        self._last = None
        self._between = True

    @property
    def in_line(self) -> bool:
        """Whether the last line that was printed has no end yet."""
        return self._last not in (None, "\n")

    def tail(self) -> list[RenderableType]:
        """The text not yet printed: none."""
        return []


class MarkdownAnswers:
    """Prints each Markdown block once it is finished; the unfinished one is `tail`, to be redrawn in place.

    hold: keep the answer unfinished until its end, so that other text can be printed above it.
    """

    in_line = False  # blocks are whole lines

    def __init__(
        self, console: Console, print_lines: Callable[[list[Line]], None], *, hold: bool = False
    ) -> None:
        self._hold = hold
        self._console = console
        self._print_lines = print_lines
        self._stream = BlockStream()
        self._printed = False

    def say(self, text: str) -> None:
        """Add a piece of the answer."""
        if self._hold:
            self._stream.tail += text
            return
        for block in self._stream.feed(text):
            self._print(block)

    def finish(self) -> None:
        """End the answer."""
        for block in self._stream.flush():
            self._print(block)

    def tail(self) -> list[RenderableType]:
        """The unfinished block, after a blank line if another precedes it."""
        if not self._stream.tail.strip():
            return []
        block = Block(self._stream.tail)
        return [Text("\N{NO-BREAK SPACE}"), block] if self._printed else [block]

    def _print(self, block: str) -> None:
        rendered = render_lines(self._console, Block(block))
        self._print_lines([[], *rendered] if self._printed else rendered)
        self._printed = True
