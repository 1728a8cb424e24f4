"""A token that was drawn: on the device, and perhaps on its way to the host."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamas_cli.errors import NotFiniteError

ELSEWHERE = torch.empty(0)  # the weight of a token that was sent with others


class Places(NamedTuple):
    """Pinned memory for tokens and their weights, see `together`, as numpy sees it too, and an event after
    which they are there.
    """

    both: Tensor
    array: np.ndarray
    event: torch.cuda.Event


class Sent:
    """Tokens of a few answers with their weights, on their way to the host. All are read at once, and not by
    torch: during each of its calls another thread may take the interpreter.
    """

    def __init__(self, places: Places, spare: list[Places]) -> None:
        """spare: takes the places once they are read."""
        self._places, self._spare = places, spare
        self._numbers: list[tuple[int, float]] | None = None

    def number(self, row: int) -> tuple[int, float]:
        """A token and its weight; waits until they are here."""
        if self._numbers is None:
            _, array, event = self._places
            if not event.query():  # waiting lets other threads have the interpreter, even for nothing
                event.synchronize()
            tokens, weights = array
            self._numbers = list(zip(tokens.tolist(), weights.view(np.float64).tolist(), strict=True))
            self._spare.append(self._places)
        return self._numbers[row]


class Drawn(NamedTuple):
    """A token, int64 [1], and its weight [1]: its logit or probability, which is not finite if some logit is
    NaN or infinite. sent: those on their way to the host together, if it is one of them: its weight is then
    only there, in its `row`.
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


def together(tokens: Tensor, weights: Tensor) -> Tensor:
    """Tokens, int64 [n], and the bits of their weights as float64, int64 [2, n]: one copy takes both."""
    return torch.stack((tokens, weights.double().view(torch.int64)))
