"""Lays out documents as tokens in a thread, while the model's weights load."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from adamas_cli.progress import Progress

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.prompt.layout import Layout


class _StoppedError(Exception):
    """Ends the thread at the next block of tokens."""


class Counting:
    """Adds documents to a layout in the background; leaving the scope stops that at the next block."""

    def __init__(self, layout: Layout, documents: Sequence[Document], progress: Progress) -> None:
        self._layout = layout
        self._documents = documents
        self._progress = progress
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="counting", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self) -> Layout:
        """The layout with all documents in it; raises any error of the thread."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._layout

    def _work(self) -> None:
        try:
            with self._progress.task("counting tokens", None, "tokens") as advance:

                def count(tokens: int) -> None:
                    if self._stop.is_set():
                        raise _StoppedError
                    advance(tokens)

                self._layout.expect(self._documents)
                for document in self._documents:
                    self._layout.add(document, count)
        except _StoppedError:
            pass
        except BaseException as error:  # raised again in the waiting thread
            self._failure = error
