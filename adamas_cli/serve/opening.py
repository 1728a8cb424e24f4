"""A model with documents and its worker, for any client protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

from adamas_cli.documents import Document
from adamas_cli.serve.answering import Answering
from adamas_cli.serve.library import Library
from adamas_cli.serve.worker import Worker
from adamas_cli.session.answer import Told
from adamas_cli.session.runtime import Runtime


@dataclass(frozen=True)
class Limits:
    """parallel: answers in progress at once; waiting: how many more may wait. timeout: seconds of a request;
    stopping: seconds that answers have to end when the server stops. upload: bytes of one upload.
    """

    parallel: int = 4
    waiting: int = 32
    timeout: float = 600.0
    stopping: float = 10.0
    upload: int = 32 << 20


class Opened:
    """Ready to answer after `open`. A context manager, in which its worker runs."""

    def __init__(self, runtime: Runtime, documents: Sequence[Document], limits: Limits) -> None:
        self.limits = limits
        self.worker = Worker(limits.parallel, limits.waiting)
        self.answering = Answering(runtime, Library(documents, limits.upload), limits.parallel)

    def __enter__(self) -> Self:
        self.worker.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.worker.stop()
        self.answering.close()

    def open(self, show: Callable[[Told], None]) -> None:
        """Load the model and read the documents named at the start. Raises what both do."""

        def read() -> None:
            self.answering.runtime.load()
            if self.answering.library.served:
                for event in chain.from_iterable(self.answering.read_served()):
                    show(event)

        self.worker.call(read)
