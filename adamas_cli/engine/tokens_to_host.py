"""Brings tokens from the device to the host, so that the next step is launched before one is known."""

from __future__ import annotations

import torch

from adamas_cli.engine.drawn import Drawn, Sent


def send_each(drawn: Drawn) -> list[Drawn]:
    """The tokens [n] of as many answers and their weights, each apart. From a GPU all are sent to the host
    together: a copy takes the host longer than the device.
    """
    apart = [Drawn(*one) for one in zip(drawn.token.split(1), drawn.weight.split(1), strict=True)]
    if not drawn.token.is_cuda:
        return apart
    both = drawn.token, drawn.weight
    places = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in both]
    for place, numbers in zip(places, both, strict=True):
        place.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    theirs = zip(*(place.split(1) for place in places), strict=True)
    return [one._replace(sent=Sent(Drawn(*its), event, True)) for one, its in zip(apart, theirs, strict=True)]


class TokenReader:
    """Sends tokens with their weights to the host. Sending does not wait for a GPU."""

    def __init__(self) -> None:
        self._spare: list[Sent] = []

    def send(self, drawn: Drawn) -> Sent:
        """Start copying a token to the host; the original may change once this returns."""
        if drawn.sent is not None:
            return drawn.sent
        if not drawn.token.is_cuda:
            return Sent(Drawn(drawn.token.clone(), drawn.weight.clone()), None)
        sent = self._spare.pop() if self._spare else self._make()
        assert sent.event is not None
        sent.place.token.copy_(drawn.token, non_blocking=True)
        sent.place.weight.copy_(drawn.weight, non_blocking=True)
        sent.event.record()
        return sent

    def receive(self, sent: Sent) -> int:
        """A token that was sent, once. Raises NotFiniteError."""
        if sent.event is not None:
            if not sent.event.query():  # waiting lets other threads have the interpreter, even for nothing
                sent.event.synchronize()
            if not sent.together:
                self._spare.append(sent)
        return sent.place.id()

    @staticmethod
    def _make() -> Sent:
        token, weight = (torch.empty(1, dtype=kind, pin_memory=True) for kind in (torch.int64, torch.float32))
        return Sent(Drawn(token, weight), torch.cuda.Event())
