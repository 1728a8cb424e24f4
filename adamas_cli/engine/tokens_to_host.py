"""Brings tokens from the device to the host, so that the next step is launched before one is known."""

from __future__ import annotations

from collections import defaultdict

import torch

from adamas_cli.engine.drawn import Drawn, Places, Sent


class TokenSender:
    """Sends tokens with their weights to the host. Sending does not wait for a GPU."""

    def __init__(self) -> None:
        self._spare: defaultdict[int, list[Places]] = defaultdict(list)  # by number of tokens

    def send(self, drawn: Drawn) -> Drawn:
        """A token, on its way to the host."""
        if drawn.sent is not None or not drawn.token.is_cuda:
            return drawn
        return drawn._replace(sent=self._sent(drawn))

    def send_each(self, drawn: Drawn) -> list[Drawn]:
        """The tokens [n] of as many answers and their weights, each apart. From a GPU all are sent to the
        host together: a copy takes the host longer than the device.
        """
        tokens = drawn.token.unsqueeze(1).unbind()
        if not drawn.token.is_cuda:
            return [Drawn(*one) for one in zip(tokens, drawn.weight.unsqueeze(1).unbind(), strict=True)]
        sent = self._sent(drawn)
        return [Drawn(token, drawn.weight, sent, row) for row, token in enumerate(tokens)]

    def _sent(self, drawn: Drawn) -> Sent:
        """Start copying tokens [n]; the originals may change once this returns."""
        spare = self._spare[len(drawn.token)]
        places = spare.pop() if spare else _make(len(drawn.token))
        places.token.copy_(drawn.token, non_blocking=True)
        places.weight.copy_(drawn.weight, non_blocking=True)
        places.event.record()
        return Sent(places, spare)


def _make(count: int) -> Places:
    token, weight = (torch.empty(count, dtype=kind, pin_memory=True) for kind in (torch.int64, torch.float32))
    return Places(token, weight, torch.cuda.Event())
