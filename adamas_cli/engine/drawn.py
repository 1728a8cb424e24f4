"""A token that was drawn: on the device, and perhaps on its way to the host."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from adamas_cli.errors import NotFiniteError

if TYPE_CHECKING:
    from adamas_cli.engine.tokens_to_host import Sent


class Drawn(NamedTuple):
    """A token, int64 [1], and its weight [1]: its logit or probability, which is not finite if some logit is
    NaN or infinite. sent: those on their way to the host together, if it is one of them; row: its place.
    """

    token: Tensor
    weight: Tensor
    sent: Sent | None = None
    row: int = 0

    def id(self) -> int:
        """The token, once the device has computed it. Raises NotFiniteError."""
        if self.sent is not None:
            return finite(*self.sent.number(self.row))
        return finite(int(self.token), float(self.weight))


def finite(token: int, weight: float) -> int:
    """The token, unless its weight is NaN or infinite. Raises NotFiniteError."""
    if not math.isfinite(weight):
        raise NotFiniteError
    return token
