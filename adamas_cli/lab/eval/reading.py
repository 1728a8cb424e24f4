"""One document in a model: read in one way, then answered by any method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
from adamas_kernels.contract import Backend
from torch import Tensor

from adamas_cli.cache.mode import Sparse
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Event, Prefill
from adamas_cli.engine.peak import free_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import SparseFrom, Steer, Timeline
from adamas_cli.lab.eval.ledger import Record
from adamas_cli.lab.eval.methods import METHODS, Method
from adamas_cli.lab.eval.readings import DENSE, READINGS, StudyReading
from adamas_cli.models import LoadedModel
from adamas_cli.planning.together import answers_at_once
from adamas_cli.session.turns import Turns

FULL = "full"


@dataclass(frozen=True)
class Way:
    """One way to read and to answer. method: a name in METHODS, or `full`, whose budget is 0. read: a name in
    READINGS.

    question: `dense` if the question is read with full attention, as `ask` does; `sparse` if its tokens
    attend as the answer's do.
    """

    method: str
    budget: int
    question: str = "dense"
    read: str = DENSE

    @property
    def identity(self) -> Record:
        """A row's fields about how the document was read and how tokens were chosen. They hold all settings,
        so that a later default is not taken for an earlier one. Dense reading adds nothing, because rows of
        earlier versions do not name it.
        """
        settings = {} if self.method == FULL else asdict(METHODS[self.method].at(self.budget))
        told = {"method": self.method, "budget": self.budget, "settings": _told(settings, "budget")}
        reading = READINGS[self.read]
        return told | {"read": None if reading is None else self.read, "reading": reading and str(reading)}

    @property
    def sparse_from(self) -> SparseFrom:
        """The argument for `Timeline.answer`."""
        if self.method == FULL:
            return "never"
        return "question" if self.question == "sparse" else "answer"


def _told(settings: Mapping[str, object], *left_out: str) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items() if name not in left_out)


def all_ways(
    methods: Sequence[str], budgets: Sequence[int], questions: Sequence[str], reads: Sequence[str] = (DENSE,)
) -> list[Way]:
    """First full attention after dense reading; then, for each reading, dense ones first, full attention and
    each method at each budget.
    """
    answers = [(FULL, 0, "dense"), *product(methods, budgets, questions)]
    ordered = sorted(reads, key=lambda read: read != DENSE)
    return list(dict.fromkeys([Way(FULL, 0), *(Way(*one, read) for read in ordered for one in answers)]))


def by_reading(ways: Iterable[Way]) -> dict[str, list[Way]]:
    """The ways grouped by reading, in order."""
    found: dict[str, list[Way]] = {}
    for way in ways:
        found.setdefault(way.read, []).append(way)
    return found


class Question(NamedTuple):
    """A question's tokens, int [n], and the length of its answer. steer: see `Timeline.answer`."""

    ids: np.ndarray
    max_tokens: int
    steer: Steer | None


class Reading:
    """One document in its own cache, with room for `context` tokens. how: a name in READINGS."""

    def __init__(self, loaded: LoadedModel, *, context: int, dense_layers: int, how: str = DENSE) -> None:
        self._stop_ids = loaded.stop_ids
        settings = AttentionSettings("adamas", dense_layers=dense_layers, backend="torch")
        reading = READINGS[how]
        if reading is not None:
            settings = replace(settings, read="sparse")
        self._timeline = Timeline(loaded, settings, context=context, forks=True)
        if isinstance(reading, StudyReading):
            self._timeline.read_by(reading)

    def read(self, ids: np.ndarray) -> Iterator[Prefill]:
        """Read the document's tokens, int [n]."""
        return self._timeline.read(ids)

    @property
    def computed(self) -> float | None:
        """The share of blocks that was computed; None for dense reading."""
        return self._timeline.computed

    def use(self, method: Method, budget: int, backend: Backend) -> None:
        """Choose tokens by `method` from here on; the keys are encoded again with its settings."""
        self._timeline.use(Sparse(method.at(budget), backend))

    def answer(
        self, ids: np.ndarray, max_tokens: int, sparse_from: SparseFrom, steer: Steer | None = None
    ) -> Iterator[Event]:
        """The greedy answer to a question's tokens, int [n]. steer: see `Timeline.answer`."""
        return self._timeline.answer(
            ids, Sampling(), max_tokens, self._stop_ids, sparse_from=sparse_from, steer=steer
        )

    def answers(self, asked: Sequence[Question], sparse_from: SparseFrom) -> list[Iterator[Event]]:
        """The answers to several questions, to be read in this order; they decode together if possible."""
        timeline = self._timeline
        each = [(one.ids, one.max_tokens, sparse_from, one.steer) for one in asked]
        if len(asked) == 1 or timeline.obstacle_together(sparse_from) is not None:
            return [self.answer(*one) for one in each]
        timeline.batch = timeline.batch or Batch(timeline.model)
        tail = max(len(one.ids) + one.max_tokens for one in asked)
        free = free_memory(timeline.model.device)
        most = answers_at_once(timeline.fork_bytes(timeline.length, tail), free)
        return Turns([partial(self._branch, *one) for one in each], most).streams()

    def _branch(
        self, ids: np.ndarray, max_tokens: int, sparse_from: SparseFrom, steer: Steer | None
    ) -> Iterator[Event]:
        """An answer that leaves this timeline unchanged, also while it is given."""
        return self._timeline.fork().answer(
            ids, Sampling(), max_tokens, self._stop_ids, sparse_from=sparse_from, steer=steer
        )

    def score(self, ids: np.ndarray, *, sparse: bool) -> Tensor:
        """Logits [n, vocabulary] after each of the tokens, int [n]."""
        return self._timeline.score(ids, sparse=sparse)
