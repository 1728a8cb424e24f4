"""What an answer's tokens attended to, added up."""

from __future__ import annotations

import torch
from adamas_kernels.contract import LARGEST_STEP
from torch import Tensor


class Tally:
    """Of one cache: how often each of its tokens was attended to, and with what softmax weight, added up over
    the sparse layers and their heads.

    counts: float32 [1, 2, C], which `widen` replaces.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.counts = torch.zeros(1, 2, capacity, device=device)
        self._each: dict[int, Tensor] = {}  # of steps of several tokens, by how many: parts of one memory
        self._open: Tensor | None = None  # that of the last step, until it is settled

    def of_step(self, new: int) -> Tensor:
        """Where a step of this many tokens counts, float32 [new, 2, C]: several of them each apart, until
        `settle`.
        """
        self._open = None
        if new == 1:
            return self.counts
        if new not in self._each:
            most = self._each.get(LARGEST_STEP)
            if most is None:
                most = self._each[LARGEST_STEP] = self.counts.new_empty(LARGEST_STEP, *self.counts.shape[1:])
            self._each[new] = most[:new]
        self._open = self._each[new].zero_()
        return self._open

    def settle(self, kept: int) -> None:
        """Of the last step's tokens, if there were several, count the first ones, which stay."""
        if self._open is not None:
            self.counts += self._open[:kept].sum(0)
            self._open = None

    def widen(self, capacity: int) -> bool:
        """Room for this many tokens; whether `counts` is another tensor now."""
        known = self.counts
        if known.shape[2] >= capacity:
            return False
        self.counts = torch.zeros(1, 2, capacity, device=known.device)
        self.counts[:, :, : known.shape[2]] = known
        self._each.clear()
        return True

    def weights(self, tokens: int) -> Tensor:
        """The softmax weight of each of the first tokens, float32 [tokens]."""
        return self.counts[0, 1, :tokens]
