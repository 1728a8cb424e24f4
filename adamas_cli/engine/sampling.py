"""How the next token is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Constraint(Protocol):
    """Which tokens may come next in one answer."""

    def allowed(self, vocabulary: int) -> np.ndarray:
        """Whether each token may, bool [vocabulary]; at least one may."""
        ...

    def take(self, token: int) -> None:
        """This one does, which was allowed."""
        ...


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy, so that answers repeat; `top_k` 0, `top_p` 1 and `min_p` 0 keep all."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def constraint(self) -> Constraint | None:
        """A new constraint, for one answer; None where every token may come."""
        return None


@dataclass(frozen=True)
class ConstrainedSampling(Sampling):
    """Sampling of answers that begin with a constraint of their own each."""

    begin: Callable[[], Constraint] = field(kw_only=True)

    def constraint(self) -> Constraint:
        """See `Sampling.constraint`."""
        return self.begin()
