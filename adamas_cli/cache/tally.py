"""What an answer's tokens attended to, added up."""

from __future__ import annotations

import torch
from torch import Tensor


class Tally:
    """Of one cache: how often each of its tokens was attended to, and with what softmax weight, added up over
    the sparse layers and their heads.

    counts: float32 [1, 2, C], which `widen` replaces.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.counts = torch.zeros(1, 2, capacity, device=device)
        self._each: Tensor | None = None

    def of_step(self, new: int) -> Tensor:
        """Where a step of this many tokens counts, float32 [new, 2, C]: with several of them each apart, until
        `settle`.
        """
        if new == 1:
            return self.counts
        if self._each is None or self._each.shape[::2] < (new, self.counts.shape[2]):
            self._each = self.counts.new_empty(new, *self.counts.shape[1:])
        return self._each[:new].zero_()

    def settle(self, kept: int) -> None:
        """Of the last step's tokens, if there were several, count the first ones, which stay."""
        if self._each is not None:
            self.counts += self._each[:kept].sum(0)

    def widen(self, capacity: int) -> bool:
        """Room for this many tokens; whether `counts` is another tensor now."""
        known = self.counts
        if known.shape[2] >= capacity:
            return False
        self.counts = torch.zeros(1, 2, capacity, device=known.device)
        self.counts[:, :, : known.shape[2]] = known
        return True

    def weights(self, tokens: int) -> Tensor:
        """The softmax weight of each of the first tokens, float32 [tokens]."""
        return self.counts[0, 1, :tokens]
