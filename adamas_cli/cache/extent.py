"""How many tokens a cache holds, as the device knows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Extent:
    """State shared by all layers of one cache.

    lengths: tokens before the current step, int32 [1] on the layers' device, so that no step waits for the
    host. version: changes whenever something a step reads is replaced, as opposed to rewritten in place.
    reach: the length that sets how positions rotate, see `models/rotary.py`; 0 for the original context's.
    """

    lengths: Tensor
    version: int = 0
    reach: int = 0

    def fork(self) -> Extent:
        """A copy that continues independently."""
        return Extent(self.lengths.clone(), reach=self.reach)
