"""How the next token is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Constraint(Protocol):
    """The tokens that may come next in one answer."""

    def allowed(self, vocabulary: int) -> np.ndarray:
        """Whether each token is allowed, bool [vocabulary]; at least one is."""
        ...

    def take(self, token: int) -> None:
        """Advance by this token, which was allowed."""
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
        """A new constraint, for one answer; None if every token is allowed."""
        return None

    def alternatives(self) -> int | None:
        """How many of the likeliest tokens are reported with each token and its log-probability; None for no
        log-probabilities.
        """
        return None


@dataclass(frozen=True)
class GuidedSampling(Sampling):
    """Sampling in which each answer begins its own constraint, and log-probabilities are reported with `top`
    alternatives; None for either omits it.
    """

    begin: Callable[[], Constraint] | None = field(default=None, kw_only=True)
    top: int | None = field(default=None, kw_only=True)

    @classmethod
    def of(
        cls, sampling: Sampling, *, begin: Callable[[], Constraint] | None = None, top: int | None = None
    ) -> GuidedSampling:
        """The same sampling, with these additions."""
        known = asdict(sampling)
        chosen = {name: value for name, value in {"begin": begin, "top": top}.items() if value is not None}
        return cls(**known | chosen)

    def constraint(self) -> Constraint | None:
        """See `Sampling.constraint`."""
        return None if self.begin is None else self.begin()

    def alternatives(self) -> int | None:
        """See `Sampling.alternatives`."""
        return self.top
