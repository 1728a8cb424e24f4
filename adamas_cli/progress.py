"""Progress reports of long-running work, independent of how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives notes and the progress of tasks; `display.py` draws it, `Silent` drops it."""

    def note(self, text: str) -> None:
        """One line that the user should read, such as `compiling kernels for the first time`."""
        ...

    def task(
        self,
        label: str,
        total: int | None,
        unit: str,
        remaining: Callable[[], float | None] | None = None,
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A task of `total` units (None if unknown); the callable adds finished units.

        `unit` is `bytes`, `tokens`, `files` or another plural noun. remaining: returns the seconds left, for
        tasks whose units are not equally long.
        """
        ...


class Silent:
    """A Progress that shows nothing."""

    def note(self, text: str) -> None:
        """Drop the note."""

    @contextmanager
    def task(
        self,
        label: str,
        total: int | None,
        unit: str,
        remaining: Callable[[], float | None] | None = None,
    ) -> Iterator[Callable[[int], None]]:
        """Count nothing."""
        yield lambda _: None
