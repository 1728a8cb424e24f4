"""The only module that draws: answers on stdout, progress on stderr.

On a terminal, finished Markdown blocks are printed once, and a few rows below them are redrawn in place.
Elsewhere the answer is the model's own text, byte for byte, and progress is a few plain lines.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.text import Text as StyledText

from adamas_cli.engine.events import Done, Prefill, Token
from adamas_cli.longdoc.events import Step
from adamas_cli.sanitize import one_line, plain
from adamas_cli.session.answer import Origins, Text, Told
from adamas_cli.sources.passages import Sources
from adamas_cli.terminal import lines
from adamas_cli.terminal.answers import MarkdownAnswers, PlainAnswers
from adamas_cli.terminal.levels import TreeView
from adamas_cli.terminal.markdown import THEME
from adamas_cli.terminal.origins import heat_strip, passage_lines, quote_lines
from adamas_cli.terminal.region import Line, Region, ansi
from adamas_cli.terminal.spelling import spelled
from adamas_cli.terminal.table import NARROWEST

_FRAME_SECONDS = 0.1


@dataclass
class _Task:
    label: str
    total: int | None
    unit: str
    began: float
    remaining: Callable[[], float | None] | None = None
    done: int = 0

    def advance(self, units: int) -> None:
        self.done += units

    def line(self, width: int) -> RenderableType:
        written = lines.size if self.unit == "bytes" else lines.count
        told = written(self.done) if self.total is None else f"{written(self.done)} of {written(self.total)}"
        counted = self.done or self.total
        facts = [told if self.unit == "bytes" else f"{told} {self.unit}"] if counted else []
        seconds = time.monotonic() - self.began
        if self.total and 0 < self.done < self.total:
            left = self._left(seconds)
            if left is not None:
                facts.insert(0, f"ETA {lines.duration(left)}")
        elif seconds >= 1:
            facts.append(lines.duration(seconds))
        return lines.bar(self.label, self.done, self.total, facts, width)

    def _left(self, seconds: float) -> float | None:
        """Seconds until the end, after this many; None if unknown."""
        if self.remaining is not None:
            return self.remaining()
        return seconds * ((self.total or 0) - self.done) / self.done


class Display:
    """Draws events and, as a `Progress`, the tasks that precede them. A context manager; thread-safe.

    `answers`: where the answer is printed, None if it is not (JSON, a file). `usage`: whether each answer
    ends with a line of counts and rates; None shows it on a terminal. `origins`: whether to show where each
    answer came from, if it has Origins.
    """

    def __init__(
        self,
        *,
        answers: TextIO | None,
        notes: TextIO,
        quiet: bool = False,
        usage: bool | None = None,
        reasoning: bool = True,
        origins: bool = False,
    ) -> None:
        self._notes = _console(notes)
        self._quiet = quiet
        self._shows_origins = origins and not quiet
        self._origins: Origins | None = None
        self._shows_reasoning = reasoning and not quiet
        self._shows_progress = _can_redraw(self._notes) and not quiet
        # Rows redrawn on a terminal would collide with an answer that another program prints there.
        shared = answers is not None and not answers.isatty() and not _is_file(answers)
        self._shows_status = self._shows_progress and not shared
        self._shows_usage = (self._shows_progress if usage is None else usage) and not quiet
        self._live = self._notes if self._shows_progress else None
        self._answers: PlainAnswers | MarkdownAnswers | None = None
        if answers is not None:
            self._answers = self._open_answers(answers)
        # Notes would break the lines of an answer that goes to the same file.
        self._holds_notes = answers is not None and self._live is None and _are_one_file(answers, notes)
        self._held: list[tuple[str, str]] = []  # notes and their styles, until a line ends
        self._region = Region(self._live) if self._live is not None else None
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="display", daemon=True)
        self._tasks: list[_Task] = []
        self._prefill: tuple[Prefill, float] | None = None  # with its arrival time
        self._token: Token | None = None
        self._tree = TreeView()
        self._thought = ""  # the unfinished line of the model's thought

    def _open_answers(self, stream: TextIO) -> PlainAnswers | MarkdownAnswers:
        console = _console(stream)
        if self._live is None and _can_redraw(console):
            self._live = console
        if not console.is_terminal or console.is_dumb_terminal or console.width < NARROWEST:
            return PlainAnswers(stream, self._make_room if not self._shows_status else lambda: None)
        return MarkdownAnswers(
            console, lambda rendered: self._print_lines(console, rendered), hold=self._shows_origins
        )

    def __enter__(self) -> Self:
        if self._region is not None:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._ticker.is_alive():
            self._ticker.join()
        with suppress(BrokenPipeError):
            self._finish()

    def note(self, text: str) -> None:
        """Print one line on stderr that the user should read."""
        if not self._quiet:
            self._print_note(plain(spelled(text)))

    @contextmanager
    def task(
        self,
        label: str,
        total: int | None,
        unit: str,
        remaining: Callable[[], float | None] | None = None,
    ) -> Iterator[Callable[[int], None]]:
        """A line with a bar during the task, if stderr is a terminal."""
        task = _Task(one_line(label), total, unit, time.monotonic(), remaining)
        with self._lock:
            self._tasks.append(task)
        try:
            yield task.advance
        finally:
            with self._lock:
                self._tasks.remove(task)

    def question(self, text: str) -> None:
        """Show which of several questions is next, if stderr is a terminal."""
        if self._shows_progress:
            self._print_note(f"\n> {one_line(text)}\n", style="bold")

    def show(self, event: Told) -> None:
        """Draw an event."""
        with self._lock:
            match event:
                case Step():
                    self._tree.update(event)
                    told = None if self._shows_progress else self._tree.plain_line(event)
                    if told is not None:
                        self.note(told)
                case Prefill():
                    self._prefill = (event, time.monotonic()) if event.done < event.total else None
                case Token():
                    self._leave_tree()
                    self._prefill, self._token = None, event
                case Text(text=text, reasoning=True):
                    self._think(text)
                case Text(text=text, reasoning=False):
                    self._finish_thought()
                    if self._answers is not None:
                        self._answers.say(text)
                        self._print_held()
                case Origins():
                    self._origins = event if self._shows_origins else None
                case Done():
                    self._finish()
                    self._tell_origins()
                    if self._shows_usage:
                        self._print_note(lines.summary(event), style="dim")
                    elif event.finish_reason == "length":
                        self.note("the answer was cut at --max-tokens")

    def settle(self) -> None:
        """End the answer where it is and release the terminal."""
        self._finish()

    def _think(self, text: str) -> None:
        if self._shows_reasoning:
            *whole, self._thought = (self._thought + text).split("\n")
            for line in whole:
                self._print_note(line, style="dim")

    def _finish_thought(self) -> None:
        if self._thought:
            line, self._thought = self._thought, ""
            self._print_note(line + "\n", style="dim")

    def _finish(self) -> None:
        """Print everything unfinished; nothing is redrawn after that."""
        with self._lock:
            self._prefill = self._token = None
            self._leave_tree()
            self._finish_thought()
            self._make_room()
            if self._origins is not None:
                self._print_strip(self._origins.sources)
            if self._answers is not None:
                self._answers.finish()
                self._print_held()

    def tell_sources(self, sources: Sources) -> None:
        """Print passages on stderr, and on a terminal a strip that shows their positions."""
        self._print_strip(sources)
        self._print_passages(sources)

    def _leave_tree(self) -> None:
        for line in self._tree.leave():
            if self._shows_progress:
                self._print_note(line, style="dim")

    def _tell_origins(self) -> None:
        origins, self._origins = self._origins, None
        if origins is None:
            return
        if origins.sources is not None:
            self._print_passages(origins.sources)
        for line in () if origins.quotes is None else quote_lines(origins.quotes):
            self._print_note(line)

    def _print_passages(self, sources: Sources) -> None:
        for line in passage_lines(sources.passages, self._notes.width if self._shows_progress else None):
            self._print_note(line)

    def _print_strip(self, sources: Sources | None) -> None:
        if self._shows_progress and sources is not None and sources.strip:
            with self._lock:
                self._make_room()
                self._notes.print(heat_strip(sources, self._notes.width))

    def _make_room(self) -> None:
        if self._region is not None:
            self._region.clear()

    def _print_note(self, text: str, style: str = "") -> None:
        with self._lock:
            if self._holds_notes and self._answers is not None and self._answers.in_line:
                self._held.append((text, style))
                return
            self._make_room()
            self._notes.print(StyledText(text, style=style), soft_wrap=True)
            self._notes.file.flush()

    def _print_held(self) -> None:
        held, self._held = self._held, []
        for text, style in held:
            self._print_note(text, style)

    def _print_lines(self, console: Console, rendered: list[Line]) -> None:
        self._make_room()
        console.file.write(ansi(console, rendered) + "\n")
        console.file.flush()

    def _tick(self) -> None:
        while not self._stopped.wait(_FRAME_SECONDS):
            with self._lock:
                self._redraw()

    def _redraw(self) -> None:
        assert self._region is not None
        assert self._live is not None
        width = max(1, self._live.width - 1)
        rows: list[RenderableType] = []
        if self._thought:
            rows.append(StyledText(self._thought, style="dim"))
        if self._answers is not None:
            rows += self._answers.tail()
        if self._shows_progress:
            rows += [task.line(width) for task in self._tasks]
            rows += self._tree.rows(width)
            if self._prefill is not None:
                event, came = self._prefill
                rows.append(lines.prefill_line(event, time.monotonic() - came, width))
        if self._shows_status and self._token is not None:
            rows.append(lines.status_line(self._token, width))
        self._region.draw(rows)


def _console(stream: TextIO) -> Console:
    return Console(file=stream, theme=THEME, highlight=False)


def _can_redraw(console: Console) -> bool:
    return console.file.isatty() and not console.is_dumb_terminal and console.width >= NARROWEST


def _are_one_file(a: TextIO, b: TextIO) -> bool:
    try:
        return os.path.sameopenfile(a.fileno(), b.fileno())
    except OSError:  # a stream without a descriptor
        return False


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except OSError:  # a stream without a descriptor
        return False
