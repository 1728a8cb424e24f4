"""Brings tokens from the device to the host, so that the next step is launched before one is known."""

from __future__ import annotations

from collections import deque

import torch

from adamas_cli.engine.sampler import Drawn


class TokenReader:
    """Sends tokens with their weights, and receives them in order. Sending does not wait for a GPU."""

    def __init__(self) -> None:
        self._sent: deque[tuple[Drawn, torch.cuda.Event | None]] = deque()
        self._spare: list[tuple[Drawn, torch.cuda.Event | None]] = []

    def send(self, drawn: Drawn) -> None:
        """Start copying a token to the host; the original may change once this returns."""
        if not drawn.token.is_cuda:
            self._sent.append((Drawn(*(x.clone() for x in drawn)), None))
            return
        place, event = self._spare.pop() if self._spare else self._make()
        assert event is not None
        for there, here in zip(place, drawn, strict=True):
            there.copy_(here, non_blocking=True)
        event.record()
        self._sent.append((place, event))

    def receive(self) -> int:
        """The oldest token sent and not yet received. Raises NotFiniteError."""
        place, event = self._sent.popleft()
        if event is not None:
            event.synchronize()
            self._spare.append((place, event))
        return place.id()

    @staticmethod
    def _make() -> tuple[Drawn, torch.cuda.Event]:
        token, weight = (torch.empty(1, dtype=kind, pin_memory=True) for kind in (torch.int64, torch.float32))
        return Drawn(token, weight), torch.cuda.Event()
