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
