"""How much longer a prefill takes. Linear extrapolation would be wrong: each token attends to all before it,
so later chunks cost more.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PrefillCost:
    """Fits seconds = a * tokens + b * (token pairs attended) to the chunks timed so far.

    attention_share: an a-priori guess of b / a, the cost of one attended pair relative to the rest of one
    token's cost. It is used until two chunks of different depth are timed, and weighs little afterwards.
    """

    attention_share: float
    _chunks: list[tuple[float, float, float]] = field(default_factory=list)

    def add(self, start: int, end: int, seconds: float) -> None:
        """A chunk of the positions start to end took this many seconds."""
        self._chunks.append((end - start, _pairs(start, end), seconds))

    def remaining(self, start: int, end: int) -> float | None:
        """Seconds for the positions start to end, or None while nothing has been timed."""
        if not self._chunks:
            return None
        per_token, per_pair = self._fit()
        return per_token * (end - start) + per_pair * _pairs(start, end)

    def _fit(self) -> tuple[float, float]:
        """Non-negative least squares for (a, b), with two pseudo-chunks that hold b / a near the guess."""
        seconds = sum(chunk[2] for chunk in self._chunks)
        guess = seconds / sum(n + self.attention_share * p for n, p, _ in self._chunks)
        tokens, pairs, _ = self._chunks[0]
        prior = [(tokens, 0.0, guess * tokens), (0.0, pairs, guess * self.attention_share * pairs)]
        weighted = [(0.1 * n, 0.1 * p, 0.1 * s) for n, p, s in prior] + self._chunks
        nn = sum(n * n for n, _, _ in weighted)
        np = sum(n * p for n, p, _ in weighted)
        pp = sum(p * p for _, p, _ in weighted)
        ns = sum(n * s for n, _, s in weighted)
        ps = sum(p * s for _, p, s in weighted)
        determinant = nn * pp - np * np
        per_token = (ns * pp - ps * np) / determinant
        per_pair = (ps * nn - ns * np) / determinant
        if per_token < 0:
            return 0.0, ps / pp
        if per_pair < 0:
            return ns / nn, 0.0
        return per_token, per_pair


def _pairs(start: int, end: int) -> float:
    """Query-key pairs of causal attention for the positions start to end."""
    return (end * (end + 1) - start * (start + 1)) / 2
