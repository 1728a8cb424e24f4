"""How many tokens a cache holds, as the device knows it, and at which position the next one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, Tensor)


@dataclass
class Extent:
    """State shared by all layers of one cache.

    lengths: tokens before the current step, int32 [1] on the layers' device, so that no step waits for the
    host. version: changes whenever something a step reads is replaced, as opposed to rewritten in place.
    reach: the length that sets how positions rotate, see `models/rotary.py`; 0 for the original context's.
    shift: tokens in the cache less the position of the next one. It is 0 unless documents that share
    positions were joined (`KVCache.join`); `place` changes it.
    """

    lengths: Tensor
    version: int = 0
    reach: int = 0
    shift: int = 0

    def position(self, tokens: Count) -> Count:
        """The position of the token that comes after this many in the cache."""
        return tokens - self.shift

    def positions(self) -> Tensor:
        """The position of the next token of each sequence, int64 [1, n] on the device."""
        if not self.shift:
            return self.lengths.long().unsqueeze(0)
        # Unused rows of a pass have no tokens, and a table of positions has no negative one.
        return self.position(self.lengths).clamp(min=0).long().unsqueeze(0)

    def place(self, shift: int) -> None:
        """Changes: the next token's position. Captured steps hold the shift as a constant."""
        if shift != self.shift:
            self.shift, self.version = shift, self.version + 1

    def fork(self) -> Extent:
        """A copy that continues independently."""
        return Extent(self.lengths.clone(), reach=self.reach, shift=self.shift)
