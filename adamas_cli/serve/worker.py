"""The one thread that a model belongs to: it takes a step of each answer in turn.

A job is a generator, whose steps are a chunk that is read or a token of an answer. Up to `lanes` of them are
under way at once, one step each; the next ones wait.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

from adamas_cli.serve.errors import BusyError, StoppingError

T = TypeVar("T")
RETRY_AFTER = 5  # seconds, that a client is told to wait
_END = object()  # after the last event of a job

log = logging.getLogger(__name__)


class Job(Generic[T]):
    """An answer, for the event loop that it was submitted in. begin: makes its events, in the worker's
    thread. forget: told when it is cancelled.
    """

    def __init__(self, begin: Callable[[], Iterator[T]], forget: Callable[[Job], None]) -> None:
        self._begin, self._forget = begin, forget
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[object] = asyncio.Queue()
        self._steps: Iterator[T] | None = None
        self._cancelled = threading.Event()

    def cancel(self, error: Exception | None = None) -> None:
        """Have it end before its next step, if it has not ended yet; called in the event loop. error: that
        its events end with.
        """
        self._cancelled.set()
        self._forget(self)
        self._events.put_nowait(error or _END)

    async def events(self) -> AsyncIterator[T]:
        """What happens; raises what the job does."""
        while (event := await self._events.get()) is not _END:
            if isinstance(event, BaseException):
                raise event
            yield event  # type: ignore[misc]

    def step(self) -> object | None:
        """Take one step, in the worker's thread; what the events are to end with, if it was the last one."""
        try:
            if self._cancelled.is_set():
                self.close()
                return _END
            if self._steps is None:
                self._steps = self._begin()
            self.tell(next(self._steps))
            return None
        except StopIteration:
            return _END
        except Exception as error:
            return error

    def close(self) -> None:
        """End it where it is."""
        if self._steps is not None:
            with suppress(Exception):
                self._steps.close()  # type: ignore[attr-defined]

    def tell(self, event: object) -> None:
        """An event, or what they end with."""
        with suppress(RuntimeError):  # the loop has ended, so nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Worker:
    """lanes: jobs that are under way at once. waiting: most that may wait besides. A context manager."""

    def __init__(self, lanes: int, waiting: int) -> None:
        self._lanes, self._room = lanes, lanes + waiting
        self._changed = threading.Condition()
        self._active: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Future, Callable[[], object]]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def active(self) -> int:
        """Jobs that are under way."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Jobs that wait for one to end."""
        return len(self._waiting)

    def call(self, function: Callable[[], T]) -> T:
        """What a function returns or raises that runs in the worker's thread, between two steps."""
        future: Future[T] = Future()
        with self._changed:
            self._calls.append((future, function))
            self._changed.notify()
        return future.result()

    def submit(self, begin: Callable[[], Iterator[T]]) -> Job[T]:
        """Have a job done. Raises BusyError where too many wait, StoppingError at the end."""
        job = Job(begin, self._forget)
        with self._changed:
            if self._stopping:
                raise StoppingError
            if len(self._active) + len(self._waiting) >= self._room:
                raise BusyError(RETRY_AFTER)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """End all jobs where they are, then the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, job: Job) -> None:
        """One that waits in vain."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def _work(self) -> None:
        while self._ready():
            for job in list(self._active):
                if (end := job.step()) is not None:
                    with self._changed:  # before it is told, so that its client may ask again
                        self._active.remove(job)
                    job.tell(end)
        for job in [*self._active, *self._waiting]:
            job.close()
            job.tell(StoppingError())

    def _ready(self) -> bool:
        """Wait until there is a job under way; False once there is to be none any more."""
        while True:
            with self._changed:
                while not (self._calls or self._waiting or self._active or self._stopping):
                    self._changed.wait()
                if not self._calls:
                    while self._waiting and len(self._active) < self._lanes and not self._stopping:
                        self._active.append(self._waiting.popleft())
                    return not self._stopping
                future, function = self._calls.popleft()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
