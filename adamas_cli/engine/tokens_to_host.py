"""Tokens on their way from the device to the host, so that the next step is launched before one is known."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class TokenReader:
    """Sends tokens, int64 [1], and receives them in the same order. On a GPU sending does not wait."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._spare: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def send(self, token: Tensor) -> None:
        """Start to bring a token to the host; it may change once this has returned."""
        if not self._on_gpu:
            self._sent.append((token.clone(), None))
            return
        place, event = self._spare.pop() if self._spare else self._make()
        assert event is not None
        place.copy_(token, non_blocking=True)
        event.record()
        self._sent.append((place, event))

    def receive(self) -> int:
        """The oldest token that was sent and not yet received."""
        place, event = self._sent.popleft()
        if event is not None:
            event.synchronize()
            self._spare.append((place, event))
        return int(place)

    @staticmethod
    def _make() -> tuple[Tensor, torch.cuda.Event]:
        return torch.empty(1, dtype=torch.int64, pin_memory=True), torch.cuda.Event()
