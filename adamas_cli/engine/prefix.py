"""Which tokens an engine has in its cache, and the states it can return to.

Prompts that begin alike, such as the turns of a conversation, are read from where they begin to differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from adamas_cli.engine.engine import Engine, Stored
from adamas_cli.engine.events import Event, Prefill
from adamas_cli.engine.sampling import Sampling

RECENT = 2  # states of the last answers to return to: before the last question, and before its answer


class State(NamedTuple):
    """A state of the cache: its `tokens`, and the engine's `mark`."""

    tokens: int
    mark: Any


class CachedPrefix:
    """The tokens of one engine's cache, which nothing else fills.

    A return goes to the last known state that a prompt shares: empty, behind each thing that was `read`, or
    around the last answer. Layers with a sliding window have forgotten all others.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = np.empty(0, np.int32)
        self._read = [State(0, engine.mark())]
        self._recent: deque[State] = deque(maxlen=RECENT)

    def __len__(self) -> int:
        return len(self._ids)

    def reusable(self, ids: np.ndarray) -> int:
        """How many tokens at the beginning of a prompt, int [n], need not be read."""
        shared = common_prefix(self._ids, ids)
        if shared == len(self._ids):
            return shared
        return max(state.tokens for state in self._states() if state.tokens <= shared)

    def return_to(self, ids: np.ndarray) -> int:
        """Forget what is not the beginning of a prompt, int [n]; how many of its tokens are in the cache."""
        tokens = self.reusable(ids)
        if tokens < len(self._ids):
            self._read = [state for state in self._read if state.tokens <= tokens]
            self._recent = deque((state for state in self._recent if state.tokens <= tokens), RECENT)
            self._engine.rewind(next(state.mark for state in self._states() if state.tokens == tokens))
            self._ids = self._ids[:tokens]  # last, so that one who is interrupted here does it again
        return tokens

    def read(self, ids: np.ndarray, stored: Stored | None = None) -> Iterator[Prefill]:
        """Have a prompt, int [n], in the cache, and nothing else. stored: the same, in a store."""
        known = self.return_to(ids)
        try:
            yield from self._engine.read(ids[known:], stored)
            self._read.append(self._state())
        finally:
            self._ids = ids[: self._engine.length]

    def answer(
        self, ids: np.ndarray, sampling: Sampling, max_tokens: int, stop_ids: Collection[int]
    ) -> Generator[Event]:
        """Have a prompt, int [n] with n >= 1, in the cache and decode what comes next, which stays."""
        known = self.return_to(ids[:-1])
        self._recent.append(self._state())
        try:
            answering = self._engine.answer(ids[known:], sampling, max_tokens, stop_ids, keep=True)
            with closing(answering) as events:
                for event in events:
                    if isinstance(event, Prefill) and event.done == event.total:
                        self._recent.append(self._state())
                    yield event
        finally:
            said = np.array(self._engine.answered, np.int32)
            self._ids = np.concatenate([ids, said])[: self._engine.length]

    def _state(self) -> State:
        return State(self._engine.length, self._engine.mark())

    def _states(self) -> list[State]:
        return [*self._read, *self._recent]


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two prompts, int [n] and int [m], share at their beginning."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
