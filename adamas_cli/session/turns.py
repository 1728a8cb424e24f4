"""Several streams of events that advance in turn, one step each, while any one of them is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """begin: creates the events of each stream. most: maximum number of streams in progress; when one ends,
    the next starts.
    """

    def __init__(self, begin: Sequence[Callable[[], Iterator[T]]], most: int) -> None:
        self._begin, self._most = begin, most
        self._waiting = deque(range(len(begin)))
        self._under_way: dict[int, Iterator[T]] = {}
        self._events: list[deque[T]] = [deque() for _ in begin]  # not read yet

    def streams(self) -> list[Iterator[T]]:
        """The events of each stream; the streams may be read one after the other."""
        return [self._stream(index) for index in range(len(self._begin))]

    def close(self) -> None:
        """End all streams where they are."""
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
        """Advance each stream by one step. Raises any stream's error, after ending the others."""
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
