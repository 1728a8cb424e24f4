"""One document in front of a model: read once with full attention, then answered by any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from adamas_kernels.ops import Backend, SparseSettings
from adamas_kernels.plain import TorchBackend
from torch import Tensor

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.engine import Engine, SparseFrom
from adamas_cli.engine.events import Event, Prefill
from adamas_cli.engine.layers import SparseDecoding
from adamas_cli.engine.sampling import Sampling
from adamas_cli.eval.ledger import Record
from adamas_cli.eval.methods import METHODS, Method
from adamas_cli.models import LoadedModel
from adamas_cli.planning.decision import Attention

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
        """What `Engine.answer` is told."""
        if self.method == FULL:
            return "never"
        return "question" if self.question == "sparse" else "answer"


def all_ways(methods: Sequence[str], budgets: Sequence[int], questions: Sequence[str]) -> list[Way]:
    """Full attention first, then each method at each budget."""
    sparse = [Way(method, budget, kind) for method in methods for budget in budgets for kind in questions]
    return [Way(FULL, 0), *sparse]


@dataclass(frozen=True)
class _Given(AttentionSettings):
    """Attention settings whose sparse steps are given."""

    decoding: SparseDecoding | None = None

    def resolve(
        self, decided: Attention, announce: Callable[[str], None] | None = None
    ) -> SparseDecoding | None:
        return self.decoding


class Reading:
    """One document in a cache of its own, with room for `context` tokens."""

    def __init__(self, loaded: LoadedModel, *, context: int, dense_layers: int) -> None:
        self._stop_ids = loaded.stop_ids
        self._decoding = SparseDecoding(SparseSettings(), TorchBackend())
        settings = _Given("adamas", dense_layers=dense_layers, decoding=self._decoding)
        self._engine = Engine(loaded, settings, context=context)

    def read(self, ids: np.ndarray) -> Iterator[Prefill]:
        """Read the document's tokens, int [n]."""
        return self._engine.read(ids)

    def use(self, method: Method, budget: int, backend: Backend) -> None:
        """Choose tokens by `method` from here on; the keys are coded anew by its settings."""
        self._decoding.backend, self._decoding.settings = backend, method.at(budget)
        self._engine.encode_again()

    def answer(self, ids: np.ndarray, max_tokens: int, sparse_from: SparseFrom) -> Iterator[Event]:
        """The greedy answer to a question's tokens, int [n]."""
        return self._engine.answer(ids, Sampling(), max_tokens, self._stop_ids, sparse_from=sparse_from)

    def score(self, ids: np.ndarray, *, sparse: bool) -> Tensor:
        """Logits [n, vocabulary] behind each of the tokens, int [n]."""
        return self._engine.score(ids, sparse=sparse)
