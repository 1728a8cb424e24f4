"""The thread that steps through all answers in turn, with jobs that need no model; and stop texts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from adamas_cli.serve.errors import BusyError, StoppingError
from adamas_cli.serve.reply import Reply, Said
from adamas_cli.serve.stops import Stops
from adamas_cli.serve.worker import Job, Worker
from adamas_cli.session.answer import Text, Told

DEADLINE = 20  # seconds; no test comes near


class Gate:
    """Counts from 0, one number each time it is opened, and records its steps."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self.name, self.closed, self._steps = name, False, steps
        self._opened = threading.Semaphore(0)

    def open(self, times: int = 1) -> None:
        self._opened.release(times)

    def __call__(self) -> Iterator[list[int]]:
        try:
            for number in range(4):
                assert self._opened.acquire(timeout=DEADLINE)
                self._steps.append(self.name)
                yield [number]
        finally:
            self.closed = True


async def gathered(job: Job) -> list[Any]:
    return [event async for events in job.events() for event in events]


def within(worker: Worker, scene: Callable[[], Awaitable[None]]) -> None:
    with worker:
        asyncio.run(asyncio.wait_for(scene(), DEADLINE))


def test_jobs_take_turns_step_by_step() -> None:
    worker, steps = Worker(2, 2), list[str]()
    a, b = Gate("a", steps), Gate("b", steps)
    held, hold = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        hold.wait(DEADLINE)

    async def scene() -> None:
        blocked = threading.Thread(target=worker.call, args=(wait,))
        blocked.start()
        held.wait(DEADLINE)
        jobs = [worker.submit(a), worker.submit(b)]
        a.open(4)
        b.open(4)
        hold.set()
        assert await asyncio.gather(*map(gathered, jobs)) == [[0, 1, 2, 3]] * 2
        blocked.join()

    within(worker, scene)
    assert steps == ["a", "b"] * 4


def test_more_than_may_wait_is_refused_until_one_leaves() -> None:
    worker, steps = Worker(1, 1), list[str]()
    first, second, third = (Gate(name, steps) for name in "abc")

    async def scene() -> None:
        running = worker.submit(first)
        waiting = worker.submit(second)
        with pytest.raises(BusyError) as refused:
            worker.submit(third)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) > 0
        waiting.cancel()
        assert await gathered(waiting) == []
        last = worker.submit(third)
        first.open(4)
        third.open(4)
        assert len(await gathered(running)) == len(await gathered(last)) == 4

    within(worker, scene)
    assert "b" not in steps


def test_a_cancelled_job_takes_no_further_step() -> None:
    worker, steps = Worker(1, 0), list[str]()
    gate, other = Gate("a", steps), Gate("b", steps)

    async def scene() -> None:
        job = worker.submit(gate)
        gate.open()
        async for events in job.events():
            assert events == [0]
            job.cancel(ValueError("late"))
            gate.open()  # for the step that may be under way
            break
        with pytest.raises(ValueError, match="late"):
            await gathered(job)
        while worker.active:
            await asyncio.sleep(0.01)
        other.open(4)
        assert await gathered(worker.submit(other)) == [0, 1, 2, 3]

    within(worker, scene)
    assert gate.closed
    assert steps.count("a") <= 2


def test_an_error_ends_its_own_job_alone() -> None:
    worker, steps = Worker(2, 0), list[str]()
    gate = Gate("a", steps)

    def fail() -> Iterator[list[int]]:
        yield [1]
        raise OSError("broken")

    async def scene() -> None:
        good, bad = worker.submit(gate), worker.submit(fail)
        gate.open(4)
        with pytest.raises(OSError, match="broken"):
            await gathered(bad)
        assert len(await gathered(good)) == 4

    within(worker, scene)


def test_what_is_under_way_is_told_when_the_worker_stops() -> None:
    worker, steps = Worker(1, 1), list[str]()
    gate, other = Gate("a", steps), Gate("b", steps)

    async def scene() -> None:
        jobs = worker.submit(gate), worker.submit(other)
        gate.open()
        assert await anext(jobs[0].events()) == [0]
        stopping = asyncio.get_running_loop().run_in_executor(None, worker.stop)
        gate.open()
        for job in jobs:
            with pytest.raises(StoppingError):
                await gathered(job)
        await stopping
        with pytest.raises(StoppingError):
            worker.submit(gate)

    within(worker, scene)
    assert gate.closed


@pytest.mark.parametrize(("share", "wakes"), [(1e9, 2 + 2), (0.0, 4 + 3)], ids=["at its end", "at once"])
def test_events_of_a_job_go_together(monkeypatch, share: float, wakes: int) -> None:
    """At the latest with its end, which is an event too; at once, while it is young."""
    monkeypatch.setattr("adamas_cli.serve.worker.TOGETHER", 60.0)
    monkeypatch.setattr("adamas_cli.serve.worker.SHARE", share)
    worker, told, gate = Worker(2, 0), list[Any](), threading.Semaphore(0)

    def steps(count: int) -> Iterator[list[int]]:
        for number in range(count):
            yield [number]
            if not share:
                assert gate.acquire(timeout=DEADLINE)  # until the client has it

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def count(function: Callable[..., Any], *given: Any) -> Any:
            told.append(function)
            return wake(function, *given)

        async def taken(job: Job) -> list[Any]:
            found = []
            async for events in job.events():
                found += events
                gate.release()
            return found

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        jobs = [worker.submit(lambda: steps(3)), worker.submit(lambda: steps(2))]
        assert await asyncio.gather(*map(taken, jobs)) == [[0, 1, 2], [0, 1]]

    within(worker, scene)
    assert len(told) == wakes


def test_a_long_step_holds_up_no_event_before_it() -> None:
    """It may compile or read for a while."""
    worker, steps = Worker(1, 0), list[str]()
    gate = Gate("a", steps)

    async def scene() -> None:
        job = worker.submit(gate)
        events = job.events()
        for number in range(4):
            gate.open()
            assert await anext(events) == [number]

    within(worker, scene)


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        ([5], [("ab", True), ("cde", False)]),
        ([1] * 5, [("a", True), ("b", True), ("c", False), ("d", False), ("e", False)]),
        ([1, 1, 2, 1], [("a", True), ("b", True), ("cd", False), ("e", False)]),
    ],
)
def test_pieces_that_come_together_are_one_piece(
    together: list[int], expected: list[tuple[str, bool]]
) -> None:
    said = [Text("a", True), Text("b", True), Text("c", False), Text("d", False), Text("e", False)]

    async def events() -> AsyncIterator[list[Told]]:
        rest = iter(said)
        for count in together:
            yield list(islice(rest, count))

    async def pieces(reply: Reply) -> list[tuple[str, bool]]:
        return [
            (piece.text, piece.reasoning) async for piece in reply.follow(events()) if isinstance(piece, Said)
        ]

    reply = Reply(SimpleNamespace(asked=SimpleNamespace(stop=[])))  # type: ignore[arg-type]
    assert asyncio.run(pieces(reply)) == expected
    assert (reply.reasoning, reply.text) == ("ab", "cde")


@pytest.mark.parametrize(
    ("pieces", "stops", "passed"),
    [
        (["one two", " three"], ["two"], "one "),
        (["one t", "w", "o three"], ["two"], "one "),
        (["one tw", "ist"], ["two"], "one twist"),
        (["ababc"], ["abc"], "ab"),
        (["aab", "aab", "c"], ["aabaabc"], ""),
        (["x\ny"], ["y", "\n"], "x"),
        (["one"], [], "one"),
    ],
)
def test_text_passes_up_to_the_first_stop_text(pieces: list[str], stops: list[str], passed: str) -> None:
    watch = Stops(stops)
    told = [watch.feed(piece) for piece in pieces]
    assert "".join([*told, watch.flush()]) == passed
    assert watch.found == (passed not in ("one", "one twist"))
