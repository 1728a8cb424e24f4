"""A server from its settings to its end."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from adamas_cli.documents import Document
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError
from adamas_cli.serve.answering import Answering
from adamas_cli.serve.application import Service, application
from adamas_cli.serve.library import Library
from adamas_cli.serve.metrics import Metrics
from adamas_cli.serve.worker import Worker
from adamas_cli.session.answer import Told
from adamas_cli.session.runtime import Runtime


@dataclass(frozen=True)
class Limits:
    """parallel: answers under way at once; waiting: most that may wait besides. timeout: seconds of a
    request; stopping: that answers have to end when the server does. upload: bytes of one.
    """

    parallel: int = 4
    waiting: int = 32
    timeout: float = 600.0
    stopping: float = 10.0
    upload: int = 32 << 20


class Server:
    """A model with documents, ready to answer. A context manager, within which its worker runs."""

    def __init__(
        self,
        runtime: Runtime,
        documents: Sequence[Document],
        sampling: Sampling,
        limits: Limits,
        key: str | None,
    ) -> None:
        self._limits = limits
        self.worker = Worker(limits.parallel, limits.waiting)
        self.answering = Answering(runtime, Library(documents, limits.upload), limits.parallel)
        service = Service(
            self.answering, self.worker, Metrics(self.worker), sampling, limits.timeout, int(time.time())
        )
        self.application = application(service, key)

    def __enter__(self) -> Server:
        self.worker.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.worker.stop()
        self.answering.close()

    def open(self, show: Callable[[Told], None]) -> None:
        """Load the model and read the documents that were named at the start. Raises what both do."""

        def read() -> None:
            self.answering.runtime.load()
            if self.answering.library.served:
                for event in self.answering.read_served():
                    show(event)

        self.worker.call(read)

    def run(self, host: str, port: int, ready: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM; what is under way then has `stopping` seconds. ready: told the
        address. Raises AdamasError where it cannot be bound to.
        """
        config = uvicorn.Config(
            self.application,
            host,
            port,
            log_level=logging.getLogger("adamas_cli").getEffectiveLevel(),
            access_log=logging.getLogger(__name__).isEnabledFor(logging.INFO),
            timeout_graceful_shutdown=int(self._limits.stopping),
            lifespan="off",
        )
        try:
            socket = config.bind_socket()
        except SystemExit:
            raise AdamasError(f"cannot serve on {host} port {port}; choose another port") from None
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{socket.getsockname()[1]}/")
        with socket, _ended_by_signals():
            uvicorn.Server(config).run([socket])


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A scope in which SIGINT and SIGTERM do nothing but end uvicorn, which raises them once more then."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
