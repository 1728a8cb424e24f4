"""Several streams of events that take a step each in turn, while any one of them is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """begin: makes the events of each. most: streams that are under way at once; one that ends makes room for
    the next.
    """

    def __init__(self, begin: Sequence[Callable[[], Iterator[T]]], most: int) -> None:
        self._begin, self._most = begin, most
        self._waiting = deque(range(len(begin)))
        self._under_way: dict[int, Iterator[T]] = {}
        self._events: list[deque[T]] = [deque() for _ in begin]  # that nobody has read yet

    def streams(self) -> list[Iterator[T]]:
        """The events of each, which may be read one stream after the other."""
        return [self._stream(index) for index in range(len(self._begin))]

    def close(self) -> None:
        """End all of them where they are."""
        self._waiting.clear()
        while self._under_way:
            _, events = self._under_way.popitem()
            with suppress(Exception):
                events.close()  # type: ignore[attr-defined]

    def _stream(self, index: int) -> Iterator[T]:
        events = self._events[index]
        while events or index in self._under_way or index in self._waiting:
            if events:
                yield events.popleft()
            else:
                self._round()

    def _round(self) -> None:
        """A step of each. Raises what any of them does, and then ends the others."""
        while self._waiting and len(self._under_way) < self._most:
            index = self._waiting.popleft()
            self._under_way[index] = self._begin[index]()
        try:
            for index, events in list(self._under_way.items()):
                try:
                    self._events[index].append(next(events))
                except StopIteration:
                    del self._under_way[index]
        except BaseException:
            self.close()
            raise
