"""How many tokens a cache holds, as the device knows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Extent:
    """What all layers of one cache share.

    lengths: tokens before the current step, int32 [1] on the layers' device, so that no step waits for the
    host. version: another one after each change of what a step reads, but for the contents of its buffers.
    reach: the length by which positions turn, see `models/rotary.py`; 0 for that of the original context.
    """

    lengths: Tensor
    version: int = 0
    reach: int = 0

    def fork(self) -> Extent:
        """A copy that goes on by itself."""
        return Extent(self.lengths.clone(), reach=self.reach)
