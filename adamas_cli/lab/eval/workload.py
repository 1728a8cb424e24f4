"""The remaining work of a run, and its estimated time from the timings so far."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from adamas_cli.engine.eta import PrefillCost
from adamas_cli.engine.events import Prefill
from adamas_cli.lab.eval.readings import DENSE

PAIR_COST = 1e-4  # relative to one token's cost, until readings of different depth are timed
STEP_COST = 20.0  # tokens read in the time of one decode step, until a step is timed


class Workload:
    """Documents to read and tokens to feed one by one; each way to feed them has its own speed.

    `total` counts tokens. `advance` is called with the number of tokens done.
    """

    def __init__(self) -> None:
        self.total = 0
        self.advance: Callable[[int], None] = lambda _: None
        self._costs: defaultdict[str, PrefillCost] = defaultdict(lambda: PrefillCost(PAIR_COST))  # by kind
        self._readings: Counter[tuple[str, int]] = Counter()  # by kind and length
        self._left: defaultdict[str, float] = defaultdict(float)  # steps x context, by kind
        self._timed: dict[str, tuple[float, float]] = {}  # the same for finished work, and its seconds
        self._estimate: tuple[float, float] | None = None  # seconds left, and the time of that estimate

    def plan_reading(self, tokens: int, kind: str = DENSE) -> None:
        """Add a document of this many tokens, to be read in the way of that name."""
        self._readings[kind, tokens] += 1
        self.total += tokens

    def plan_steps(self, kind: str, tokens: int, context: int) -> None:
        """Add at most this many tokens, to be fed after `context` others."""
        self._left[kind] += tokens * context
        self.total += tokens

    def read(self, tokens: int, events: Iterable[Prefill], kind: str = DENSE) -> None:
        """Read a planned document to its end."""
        done, began = 0, time.perf_counter()
        self._readings[kind, tokens] -= 1
        cost = self._costs[kind]
        for event in events:
            now = time.perf_counter()
            if event.done > done:
                cost.add(done, event.done, now - began)
                self.advance(event.done - done)
                done, began = event.done, now
                self._estimated(cost.remaining(done, event.total) or 0.0)

    @contextmanager
    def steps(self, kind: str, tokens: int, context: int) -> Iterator[None]:
        """Time the feeding of planned tokens; an answer that ends early counts as complete."""
        began = time.perf_counter()
        yield
        work, seconds = self._timed.get(kind, (0.0, 0.0))
        self._timed[kind] = work + tokens * context, seconds + time.perf_counter() - began
        self._left[kind] -= tokens * context
        self.advance(tokens)
        self._estimated(0.0)

    def remaining(self) -> float | None:
        """Seconds until everything is done; None while nothing is timed."""
        if self._estimate is None:
            return None
        seconds, known = self._estimate
        return max(0.0, seconds - (time.perf_counter() - known))

    def _estimated(self, present: float) -> None:
        """Sum up the remaining time, `present` seconds of it for the document being read."""
        seconds = present
        for (kind, tokens), times in self._readings.items():
            seconds += times * (self._reading(kind, tokens) or 0.0)
        timed = [sum(column) for column in zip(*self._timed.values(), strict=True)]
        # A document of 1024 tokens represents all of them until a step is timed.
        guess = timed[1] / timed[0] if timed else STEP_COST * (self._reading(DENSE, 1024) or 0.0) / 1024**2
        for kind, left in self._left.items():
            work, spent = self._timed.get(kind, (0.0, 0.0))
            seconds += left * (spent / work if work else guess)
        self._estimate = seconds, time.perf_counter()

    def _reading(self, kind: str, tokens: int) -> float | None:
        """Seconds to read this many tokens; from another way's timing if this one was not timed."""
        ways = (self._costs[kind], *self._costs.values())
        return next(filter(None, (cost.remaining(0, tokens) for cost in ways)), None)
