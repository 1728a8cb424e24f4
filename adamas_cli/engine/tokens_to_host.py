"""Brings tokens from the device to the host, so that the next step is launched before one is known."""

from __future__ import annotations

from typing import NamedTuple

import torch

from adamas_cli.engine.sampler import Drawn


class Sent(NamedTuple):
    """A token on its way: where it will be on the host, and the event after which it is there."""

    place: Drawn
    event: torch.cuda.Event | None


class TokenReader:
    """Sends tokens with their weights to the host. Sending does not wait for a GPU."""

    def __init__(self) -> None:
        self._spare: list[Sent] = []

    def send(self, drawn: Drawn) -> Sent:
        """Start copying a token to the host; the original may change once this returns."""
        if not drawn.token.is_cuda:
            return Sent(Drawn(*(x.clone() for x in drawn)), None)
        sent = self._spare.pop() if self._spare else self._make()
        assert sent.event is not None
        for there, here in zip(sent.place, drawn, strict=True):
            there.copy_(here, non_blocking=True)
        sent.event.record()
        return sent

    def receive(self, sent: Sent) -> int:
        """A token that was sent, once. Raises NotFiniteError."""
        if sent.event is not None:
            if (
                not sent.event.query()
            ):  # waiting gives other threads the interpreter, even if there is no need
                sent.event.synchronize()
            self._spare.append(sent)
        return sent.place.id()

    @staticmethod
    def _make() -> Sent:
        token, weight = (torch.empty(1, dtype=kind, pin_memory=True) for kind in (torch.int64, torch.float32))
        return Sent(Drawn(token, weight), torch.cuda.Event())
