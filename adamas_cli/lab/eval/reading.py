"""One document in front of a model: read once with full attention, then answered by any method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from adamas_kernels.contract import Backend
from torch import Tensor

from adamas_cli.cache.mode import Sparse
from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.events import Event, Prefill
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import SparseFrom, Steer, Timeline
from adamas_cli.lab.eval.ledger import Record
from adamas_cli.lab.eval.methods import METHODS, Method
from adamas_cli.models import LoadedModel

FULL = "full"


@dataclass(frozen=True)
class Way:
    """One way to answer. method: a name of METHODS, or `full`, whose budget is 0.

    question: `dense` where the question is read with full attention, as `ask` does, and `sparse` where its
    tokens attend as the answer's do.
    """

    method: str
    budget: int
    question: str = "dense"

    @property
    def identity(self) -> Record:
        """What a row says about how tokens were chosen: all settings, so that a later default is not taken
        for an earlier one.
        """
        settings = {} if self.method == FULL else asdict(METHODS[self.method].at(self.budget))
        told = " ".join(f"{name}={value}" for name, value in settings.items() if name != "budget")
        return {"method": self.method, "budget": self.budget, "settings": told}

    @property
    def sparse_from(self) -> SparseFrom:
        """What `Timeline.answer` is told."""
        if self.method == FULL:
            return "never"
        return "question" if self.question == "sparse" else "answer"


def all_ways(methods: Sequence[str], budgets: Sequence[int], questions: Sequence[str]) -> list[Way]:
    """Full attention first, then each method at each budget."""
    sparse = [Way(method, budget, kind) for method in methods for budget in budgets for kind in questions]
    return [Way(FULL, 0), *sparse]


class Reading:
    """One document in a cache of its own, with room for `context` tokens."""

    def __init__(self, loaded: LoadedModel, *, context: int, dense_layers: int) -> None:
        self._stop_ids = loaded.stop_ids
        settings = AttentionSettings("adamas", dense_layers=dense_layers, backend="torch")
        self._timeline = Timeline(loaded, settings, context=context)

    def read(self, ids: np.ndarray) -> Iterator[Prefill]:
        """Read the document's tokens, int [n]."""
        return self._timeline.read(ids)

    def use(self, method: Method, budget: int, backend: Backend) -> None:
        """Choose tokens by `method` from here on; the keys are coded anew by its settings."""
        self._timeline.use(Sparse(method.at(budget), backend))

    def answer(
        self, ids: np.ndarray, max_tokens: int, sparse_from: SparseFrom, steer: Steer | None = None
    ) -> Iterator[Event]:
        """The greedy answer to a question's tokens, int [n]. steer: see `Timeline.answer`."""
        return self._timeline.answer(
            ids, Sampling(), max_tokens, self._stop_ids, sparse_from=sparse_from, steer=steer
        )

    def score(self, ids: np.ndarray, *, sparse: bool) -> Tensor:
        """Logits [n, vocabulary] behind each of the tokens, int [n]."""
        return self._timeline.score(ids, sparse=sparse)
