"""Brings tokens from the device to the host, so that the next step is launched before one is known."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from adamas_cli.engine.drawn import ELSEWHERE, Drawn, Places, Sent


class TokenSender:
    """Sends tokens with their weights to the host. Sending does not wait for a GPU."""

    def __init__(self) -> None:
        self._spare: defaultdict[int, list[Places]] = defaultdict(list)  # by number of tokens

    def send(self, drawn: Drawn) -> Drawn:
        """A token, on its way to the host."""
        if drawn.sent is not None or not drawn.token.is_cuda:
            return drawn
        places, spare = self._places(1)
        tokens, weights = places.both.unbind()
        tokens.copy_(drawn.token, non_blocking=True)
        weights.view(torch.float64).copy_(drawn.weight, non_blocking=True)
        places.event.record()
        return drawn._replace(sent=Sent(places, spare))

    def send_each(self, both: Tensor) -> list[Drawn]:
        """The tokens of as many answers with their weights, see `together`, each apart. From a GPU all are
        sent to the host together: a copy takes the host longer than the device.
        """
        tokens, weights = both.unbind()
        each = tokens.split(1)
        if not both.is_cuda:
            return [Drawn(*one) for one in zip(each, weights.view(torch.float64).split(1), strict=True)]
        places, spare = self._places(len(tokens))
        places.both.copy_(both, non_blocking=True)
        places.event.record()
        sent = Sent(places, spare)
        return [Drawn(token, ELSEWHERE, sent, row) for row, token in enumerate(each)]

    def _places(self, count: int) -> tuple[Places, list[Places]]:
        """Places for this many tokens, and what takes them back."""
        spare = self._spare[count]
        return spare.pop() if spare else _make(count), spare


def _make(count: int) -> Places:
    both = torch.empty(2, count, dtype=torch.int64, pin_memory=True)
    return Places(both, both.numpy(), torch.cuda.Event())
