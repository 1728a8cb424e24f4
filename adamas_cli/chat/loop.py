"""Reads lines, each a question or a command, from a terminal or a stream."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from adamas_cli.chat.chat import Chat
from adamas_cli.chat.commands import obey
from adamas_cli.errors import AdamasError

if TYPE_CHECKING:
    from adamas_cli.terminal.editor import LineEditor

AT_ONCE = 2.0  # seconds within which a second Ctrl-C leaves


def follow(chat: Chat, lines: Iterable[str]) -> None:
    """Run each line of a stream until an error is raised."""
    chat.read()
    for line in lines:
        if line.strip():
            _follow_line(chat, line.strip())
        if chat.over:
            return


def converse(chat: Chat, editor: LineEditor, report: Callable[[AdamasError], object]) -> None:
    """Ask the user for lines until one leaves. Ctrl-C stops the current line's action, and errors go to
    `report`.

    Raises KeyboardInterrupt at the second of two Ctrl-C if there is nothing to stop.
    """
    _stoppable(chat, editor, report, chat.read)
    interrupted = float("-inf")
    while not chat.over:
        try:
            line = editor.read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if editor.abandoned:  # discarded text
                continue
            if time.monotonic() - interrupted < AT_ONCE:
                raise
            interrupted = time.monotonic()
            chat.display.note("Ctrl-D or another Ctrl-C leaves the chat")
            continue
        if line:
            _stoppable(chat, editor, report, partial(_follow_line, chat, line))


def _follow_line(chat: Chat, line: str) -> None:
    if line.startswith("/") and not line.startswith("//"):
        obey(chat, line)
    else:
        chat.ask(line.removeprefix("/") if line.startswith("//") else line)


def _stoppable(
    chat: Chat, editor: LineEditor, report: Callable[[AdamasError], object], action: Callable[[], None]
) -> None:
    try:
        with _one_interrupt(), editor.unechoed():
            action()
            chat.display.settle()
    except KeyboardInterrupt:
        chat.display.settle()
        unread = chat.conversation.unread
        chat.display.note(f"stopped; {unread:,} tokens are still unread" if unread else "stopped")
    except AdamasError as error:
        chat.display.settle()
        report(error)


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Only the first Ctrl-C raises KeyboardInterrupt; later ones do not disturb the clean-up."""
    came = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def lines_of_stdin() -> Iterator[str]:
    """The lines of stdin, decoded as UTF-8 as they arrive."""
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", errors="replace")
