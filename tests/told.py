"""What users read in notes and errors, with settings named as on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adamas_cli.errors import AdamasError
from adamas_cli.progress import Silent
from adamas_cli.terminal.spelling import spelled


class Notes(Silent):
    """Records its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def raises_told(kind: type[AdamasError], match: str) -> Iterator[pytest.ExceptionInfo[AdamasError]]:
    """Like pytest.raises, but matches the message as a user reads it."""
    with pytest.raises(kind) as caught:
        yield caught
    told = spelled(caught.value.message)
    assert re.search(match, told), told
