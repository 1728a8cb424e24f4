"""What a user is told by an error: settings are named as the command line spells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adamas_cli.errors import AdamasError
from adamas_cli.terminal.spelling import spelled


@contextmanager
def raises_told(kind: type[AdamasError], match: str) -> Iterator[pytest.ExceptionInfo[AdamasError]]:
    """Like pytest.raises, of the message as a user reads it."""
    with pytest.raises(kind) as caught:
        yield caught
    told = spelled(caught.value.message)
    assert re.search(match, told), told
