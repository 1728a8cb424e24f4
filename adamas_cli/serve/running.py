"""The HTTP server, from its settings to its end."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from adamas_cli.documents import Document
from adamas_cli.engine.sampling import Sampling
from adamas_cli.errors import AdamasError
from adamas_cli.serve.application import Service, application
from adamas_cli.serve.metrics import Metrics
from adamas_cli.serve.opening import Limits, Opened
from adamas_cli.session.runtime import Runtime

# Seconds that one thread may keep the interpreter while another waits for it. Each of a step's operations on
# a GPU gives it away, and the event loop would keep it for a whole step.
SWITCH = 0.0005


class Server(Opened):
    """The HTTP server. key: see `Guard`."""

    def __init__(
        self,
        runtime: Runtime,
        documents: Sequence[Document],
        sampling: Sampling,
        limits: Limits,
        key: str | None,
    ) -> None:
        super().__init__(runtime, documents, limits)
        metrics, now = Metrics(self.worker), int(time.time())
        service = Service(
            self.answering,
            self.worker,
            metrics,
            sampling,
            limits.timeout,
            now,
            served_name(runtime.files.name),
        )
        self.application = application(service, key)

    def run(self, host: str, port: int, ready: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM; answers in progress then have `stopping` seconds. ready: called with
        the address. Raises AdamasError if it cannot bind to it.
        """
        config = uvicorn.Config(
            self.application,
            host,
            port,
            log_level=logging.getLogger("adamas_cli").getEffectiveLevel(),
            access_log=logging.getLogger(__name__).isEnabledFor(logging.INFO),
            timeout_graceful_shutdown=int(self.limits.stopping),
            http="h11",  # uvicorn's other parser takes headers of any length, before `Guard` sees a request
            lifespan="off",
        )
        try:
            socket = config.bind_socket()
        except SystemExit:
            raise AdamasError(f"cannot serve on {host} port {port}; choose another port") from None
        socket.listen(config.backlog)  # so that clients may connect as soon as they know the address
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{socket.getsockname()[1]}/")
        sys.setswitchinterval(SWITCH)
        with socket, _ended_by_signals():
            uvicorn.Server(config).run([socket])


def served_name(name: str) -> str:
    """The name of a model for clients: for a local path, only its last part."""
    path = Path(name)
    return path.resolve().name.removesuffix(".gguf") if path.exists() else name


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A scope in which SIGINT and SIGTERM only end uvicorn, which then raises them again."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
