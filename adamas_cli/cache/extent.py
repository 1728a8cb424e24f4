"""How many tokens a cache holds, as the device knows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Extent:
    """What all layers of one cache share.

    lengths: tokens before the current step, int32 [1] on the layers' device, so that no step waits for the
    host. version: another one after each change of what a step reads, but for the contents of its buffers.
    """

    lengths: Tensor
    version: int = 0
