"""Work of a GPU beside its other work: a question is read while a step of other answers is computed.

Most launches of either are too small for the whole GPU, so both at once take little longer than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adamas_cli.engine.model import Model


class Aside:
    """A stream of its own. What runs there begins after all that the device was told before.

    What it reads and writes must stay alive until `join`, so nothing that it uses may grow there: memory that
    is given up on the host goes to work on the other stream at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream, self._device = torch.cuda.Stream(device), device
        self._end = torch.cuda.Event()

    @classmethod
    def of(cls, model: Model) -> Aside:
        """The one of a model on a GPU."""
        if cls not in model.shared:
            model.shared[cls] = cls(model.device)
        found = model.shared[cls]
        assert isinstance(found, cls)
        return found

    @contextmanager
    def run(self) -> Iterator[None]:
        """A scope whose operations run aside."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._end.record()

    def join(self) -> None:
        """Let what the device is told from now on begin after the last scope."""
        torch.cuda.current_stream(self._device).wait_event(self._end)
