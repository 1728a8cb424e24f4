"""Ranks as threads of one process, for tests of what each of them computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from adamas_cli.models.gguf.stored import Stored, stored

T = TypeVar("T")


class Meeting:
    """Where threads bring tensors, each its own, and get their sum."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._brought: list[Tensor | None] = [None] * count

    def sum(self, rank: int, numbers: Tensor) -> Tensor:
        self._brought[rank] = numbers
        self._barrier.wait()
        total = torch.stack([one for one in self._brought if one is not None]).sum(0)
        self._barrier.wait()
        return numbers.copy_(total)

    def gather(self, rank: int, numbers: Tensor) -> Tensor:
        self._brought[rank] = numbers
        self._barrier.wait()
        parts = torch.cat([one for one in self._brought if one is not None], -1)
        self._barrier.wait()
        return parts


class ThreadRanks:
    """The part of `Ranks` that a model computes with."""

    def __init__(self, rank: int, count: int, meeting: Meeting) -> None:
        self.rank, self.count, self._meeting = rank, count, meeting
        self.first = rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        return self._meeting.sum(self.rank, numbers)

    def gather(self, numbers: Tensor) -> Tensor:
        return self._meeting.gather(self.rank, numbers)


def ranks_as_threads(count: int) -> list[ThreadRanks]:
    meeting = Meeting(count)
    return [ThreadRanks(rank, count, meeting) for rank in range(count)]


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of calls that wait for each other."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]


class InMemory:
    """A source of weights: a model's own; see `filling.Source`."""

    path = Path("memory")

    def __init__(self, model: torch.nn.Module) -> None:
        self._tensors = model.state_dict()

    def stored(self, name: str) -> Stored:
        return stored(self._tensors[name])

    def place(self, name: str) -> None:
        return None

    def experts(self, module: str) -> None:
        return None

    def require_all_used(self) -> None:
        pass
