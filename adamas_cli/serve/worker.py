"""The one thread that owns a model: it takes a step of each answer in turn.

A job is a generator whose steps each read a chunk or give a token, and tell the events of that. Up to `lanes`
jobs run at once, one step each in turn; further ones wait.

Python runs one thread at a time, and the event loop's work for every token of every client would hold up the
next step: a message takes the loop about as long as a GPU takes for a token. So a job's events go to the loop
several at once, the more of them the more jobs there are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

from adamas_cli.serve.errors import BusyError, StoppingError

T = TypeVar("T")
RETRY_AFTER = 5  # seconds that a client is told to wait
# Seconds that a job's events wait for others to go with them to the event loop, for each job in progress; and
# the share of the time since it was submitted that they may wait at most.
TOGETHER, SHARE = 0.005, 1 / 4

log = logging.getLogger(__name__)


class _End(NamedTuple):
    """What comes after a job's last event."""

    error: Exception | None = None


class Job(Generic[T]):
    """An answer, for the event loop it was submitted in. begin: makes its steps, in the worker's thread.
    forget: called when it is cancelled.
    """

    def __init__(self, begin: Callable[[], Iterator[Sequence[T]]], forget: Callable[[Job], None]) -> None:
        self._begin, self._forget = begin, forget
        self._loop, self._submitted = asyncio.get_running_loop(), time.monotonic()
        self._sent: deque[T | _End] = deque()  # to the event loop
        self._expected = False  # whether that will take what is sent
        self._come: list[T] = []
        self._end: _End | None = None
        self._news = asyncio.Event()
        self._steps: Iterator[Sequence[T]] | None = None
        self._cancelled = threading.Event()

    def cancel(self, error: Exception | None = None) -> None:
        """End it before its next step, if it has not ended yet; called in the event loop. error: raised at
        the end of its events.
        """
        self._cancelled.set()
        self._forget(self)
        self._end = self._end or _End(error)
        self._news.set()

    async def events(self) -> AsyncIterator[list[T]]:
        """The job's events, all together that have come since the last ones were taken; raises its error."""
        while True:
            await self._news.wait()
            self._news.clear()
            come, self._come = self._come, []
            if come:
                yield come
            if self._end is not None and not self._come:
                if self._end.error is not None:
                    raise self._end.error
                return

    def step(self) -> tuple[Sequence[T | _End], bool]:
        """Take one step, in the worker's thread. Returns its events, or what ends the events, and whether it
        was the last step.
        """
        try:
            if self._cancelled.is_set():
                self.close()
                return [_End()], True
            if self._steps is None:
                self._steps = self._begin()
            return next(self._steps), False
        except StopIteration:
            return [_End()], True
        except Exception as error:
            return [_End(error)], True

    def send(self, events: Sequence[T | _End], *, last: bool, within: float = 0.0) -> None:
        """Send events, or what ends them, to the event loop, from the worker's thread. The first ones tell
        the loop when to take them and those that have come until then: within so many seconds.
        """
        if not events:  # it waits for another job
            return
        self._sent.extend(events)
        wait = min(within, (time.monotonic() - self._submitted) * SHARE)
        with suppress(RuntimeError):  # the loop has ended, so nobody listens
            if last:
                self._loop.call_soon_threadsafe(self._take)
            elif not self._expected:
                self._expected = True
                self._loop.call_soon_threadsafe(self._loop.call_later, wait, self._take)

    def _take(self) -> None:
        """Take all that was sent, in the event loop."""
        self._expected = False  # before it takes them: the next one may come meanwhile
        while self._sent:
            if isinstance(event := self._sent.popleft(), _End):
                self._end = self._end or event
            elif self._end is None:
                self._come.append(event)
        self._news.set()

    def close(self) -> None:
        """End it at its current step."""
        if self._steps is not None:
            with suppress(Exception):
                self._steps.close()  # type: ignore[attr-defined]


class Worker:
    """lanes: jobs in progress at once. waiting: how many more may wait. A context manager."""

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
        """Jobs in progress."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Waiting jobs."""
        return len(self._waiting)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the worker's thread, between two steps; returns or raises what it does."""
        future: Future[T] = Future()
        with self._changed:
            self._calls.append((future, function))
            self._changed.notify()
        return future.result()

    def submit(self, begin: Callable[[], Iterator[Sequence[T]]]) -> Job[T]:
        """Submit a job. Raises BusyError if too many wait, StoppingError when stopping."""
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
        """End all jobs at their current step, then the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, job: Job) -> None:
        """Remove a cancelled job from the queue."""
        with self._changed, suppress(ValueError):
            self._waiting.remove(job)

    def _work(self) -> None:
        while self._ready():
            for job in list(self._active):
                events, last = job.step()
                if last:
                    with self._changed:  # before the client hears of it, so that it may ask again
                        self._active.remove(job)
                job.send(events, last=last, within=TOGETHER * len(self._active))
        for job in [*self._active, *self._waiting]:
            job.close()
            job.send([_End(StoppingError())], last=True)

    def _ready(self) -> bool:
        """Wait until a job is in progress; False once the worker stops."""
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
