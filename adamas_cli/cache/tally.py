"""A running sum of what an answer's tokens attended to."""

from __future__ import annotations

import torch
from adamas_kernels.contract import LARGEST_STEP
from torch import Tensor


class Tally:
    """The tally of one cache: how often each of its tokens was attended to, and with what softmax weight,
    summed over the sparse layers and their heads.

    counts: float32 [1, 2, C], which `widen` replaces.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.counts = torch.zeros(1, 2, capacity, device=device)
        self._each: dict[int, Tensor] = {}  # for steps of several tokens, by size: views of one tensor
        self._open: Tensor | None = None  # the last step's, until it is settled

    @property
    def current(self) -> Tensor:
        """Where the step under way counts, see `of_step`."""
        return self.counts if self._open is None else self._open

    def of_step(self, new: int) -> Tensor:
        """Where a step of this many tokens counts, float32 [new, 2, C]. Several tokens are counted separately
        until `settle`.
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
        """If the last step had several tokens, count the first ones, which stay."""
        if self._open is not None:
            self.counts += self._open[:kept].sum(0)
            self._open = None

    def widen(self, capacity: int) -> bool:
        """Make room for this many tokens; returns whether `counts` was replaced."""
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
