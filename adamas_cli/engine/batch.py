"""Steps of several answers over one model, computed together so that its weights are read once for all.

An answer leaves its next tokens in its seat and continues with other work. When it asks for their logits, the
pending tokens of all answers are computed with them. So answers that take turns, one token each, decode
together, and an answer may start or end at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

from adamas_kernels.contract import LARGEST_STEP
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode
from adamas_cli.engine.model import Model
from adamas_cli.engine.steps.compiled import CompiledSteps, Entry
from adamas_cli.engine.steps.describe import NoCompiledFormError

MOST_TOGETHER = LARGEST_STEP  # answers running at once


class Batch:
    """The answers over one model that decode together, if it has compiled steps. steps: how many were taken;
    rows: tokens in all of them.
    """

    def __init__(self, model: Model) -> None:
        self.steps = self.rows = 0
        self._model = model
        self._seats: list[Seat] = []
        self._compiled: CompiledSteps | None = None

    def seat(self, cache: KVCache, mode: Mode) -> Seat:
        """A place for an answer that attends in this mode."""
        seat = Seat(self, cache, mode)
        self._seats.append(seat)
        return seat

    @property
    def reason(self) -> str | None:
        """Why answers of this model do not decode together, in one line; None where they can."""
        try:
            self._steps()
        except NoCompiledFormError as obstacle:
            return f"answers decode one after the other: {obstacle}"
        return None

    @property
    def seated(self) -> int:
        """Answers in progress."""
        return len(self._seats)

    def _steps(self) -> CompiledSteps:
        """The steps shared by all answers. Raises NoCompiledFormError."""
        if self._compiled is None:
            kinds = {layer.kind for layer in self._model.shape.by_layer}
            self._compiled = CompiledSteps(self._model, kinds)
        return self._compiled

    def most(self, cache: KVCache) -> int:
        """How many tokens of one cache a step should take, so that every answer fits."""
        return self._compiled.most(cache) if self._compiled and len(self._seats) == 1 else 1

    def leave(self, seat: Seat) -> None:
        """An answer ends; its pending tokens are dropped."""
        if seat in self._seats:
            self._seats.remove(seat)

    def step(self, first: Seat) -> None:
        """Compute the pending tokens of this seat, and those of others as far as they fit in one step."""
        together, room = [first], LARGEST_STEP - len(first.left)
        for seat in self._seats:
            if seat is not first and 0 < len(seat.left) <= room:
                together.append(seat)
                room -= len(seat.left)
        together.sort(key=self._seats.index)  # usually those of the previous step, whose records exist
        together.sort(key=lambda seat: -len(seat.left))
        for seat in together:
            seat.whole = False
        logits = self._steps().step(*(Entry(seat.cache, seat.left, seat.mode) for seat in together))
        self.steps, self.rows = self.steps + 1, self.rows + len(logits)
        for seat, its in zip(together, logits.split([len(seat.left) for seat in together]), strict=True):
            seat.took(its.clone(), alone=len(together) == 1)


class Seat:
    """One answer's place in a batch; see `Passes`.

    left: pending tokens. whole: whether its cache is consistent; an interrupted step that another answer
    requested may break it. alone: whether its last step served no other answer.
    """

    def __init__(self, batch: Batch, cache: KVCache, mode: Mode) -> None:
        self.cache, self.mode = cache, mode
        self.left: Sequence[int] = ()
        self.whole = self.alone = True
        self._batch = batch
        self._logits: Tensor | None = None

    @property
    def most(self) -> int:
        """See `Passes.most`."""
        return self._batch.most(self.cache)

    def begin(self, tokens: Tensor) -> None:
        """See `Passes.begin`."""
        self.left = tokens.tolist()

    def finish(self) -> tuple[Tensor, None]:
        """See `Passes.finish`."""
        if self.left:
            self._batch.step(self)
        logits, self._logits = self._logits, None
        assert logits is not None, "nothing was begun"
        return logits, None

    def leave(self) -> None:
        """See `Passes.leave`."""
        self._batch.leave(self)

    def took(self, logits: Tensor, *, alone: bool) -> None:
        """The pending tokens are computed."""
        self.left, self._logits, self.whole, self.alone = (), logits, True, alone
