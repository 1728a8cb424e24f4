"""What a user is told, by notes and by errors: settings are named as the command line spells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adamas_cli.errors import AdamasError
from adamas_cli.progress import Silent
from adamas_cli.terminal.spelling import spelled


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def raises_told(kind: type[AdamasError], match: str) -> Iterator[pytest.ExceptionInfo[AdamasError]]:
    """Like pytest.raises, of the message as a user reads it."""
    with pytest.raises(kind) as caught:
        yield caught
    told = spelled(caught.value.message)
    assert re.search(match, told), told
