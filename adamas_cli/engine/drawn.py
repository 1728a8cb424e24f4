"""A token that was drawn: on the device, and on its way to the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adamas_cli.errors import NotFiniteError


class Drawn(NamedTuple):
    """A token, int64 [1], and its weight [1]: its logit or probability, which is not finite if some logit is
    NaN or infinite. sent: where both are on their way to the host, if they are.
    """

    token: Tensor
    weight: Tensor
    sent: Sent | None = None

    def id(self) -> int:
        """The token, once the device has computed it. Raises NotFiniteError."""
        return finite(int(self.token), float(self.weight))


class Sent(NamedTuple):
    """A token on its way: where it will be on the host, and the event after which it is there. together: with
    those of other answers, which keep its place.
    """

    place: Drawn
    event: torch.cuda.Event | None
    together: bool = False


def finite(token: int, weight: float) -> int:
    """The token, unless its weight is NaN or infinite. Raises NotFiniteError."""
    if not math.isfinite(weight):
        raise NotFiniteError
    return token
