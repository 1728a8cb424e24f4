"""The line that a user types: edited in place, with a history and completion."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

PROMPT = "> "

Words = Callable[[], Iterable[str]]


class LineEditor:
    """Reads lines on the terminal and shows them on stderr.

    completions: for each command, such as `/add`, its possible arguments: words, or None for a path.
    history: a file that only its owner may read; None keeps the history in memory.
    """

    def __init__(self, completions: Mapping[str, Words | None], history: Path | None) -> None:
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            input=create_input(always_prefer_tty=True),
            output=create_output(sys.stderr),
            history=_history(history),
            completer=_CommandCompleter(completions),
            complete_while_typing=False,
            key_bindings=_keys(),
        )
        self._terminal = self._session.input.fileno()
        self.abandoned = False  # whether the last interruption discarded text

    def read(self) -> str:
        """The next line, or several pasted lines. Raises EOFError at Ctrl-D, KeyboardInterrupt."""
        try:
            return self._session.prompt()
        except KeyboardInterrupt:
            self.abandoned = bool(self._session.default_buffer.text)
            raise

    @contextmanager
    def unechoed(self) -> Iterator[None]:
        """While other text is drawn, typed text is not echoed and waits for the next `read`."""
        before = termios.tcgetattr(self._terminal)
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(self._terminal, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, before)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        """Alt-Enter starts another line."""
        event.current_buffer.insert_text("\n")

    return keys


def _history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError:  # the home is not writable: keep the history in memory
        return InMemoryHistory()
    return FileHistory(str(path))


class _CommandCompleter(Completer):
    """Completes a command's name and its argument."""

    def __init__(self, completions: Mapping[str, Words | None]) -> None:
        self._completions = completions
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, blank, rest = text.partition(" ")
        if not blank:
            for command in self._completions:
                if command.startswith(text):
                    yield Completion(command, start_position=-len(text))
        elif name in self._completions:
            words = self._completions[name]
            if words is None:
                yield from self._paths.get_completions(Document(rest), complete_event)
            else:
                matching = (word for word in words() if word.startswith(rest))
                yield from (Completion(word, start_position=-len(rest)) for word in matching)
