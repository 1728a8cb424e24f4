"""Steps of several answers over one model, computed together so that its weights are read once for all.

An answer leaves its next tokens in its seat and continues with other work. When it asks for their logits, the
pending tokens of all answers are computed with them. So answers that take turns, one token each, decode
together, and an answer may start or end at any time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from adamas_kernels.contract import LARGEST_STEP
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode
from adamas_cli.engine.drawn import Drawn
from adamas_cli.engine.model import Model
from adamas_cli.engine.steps.apart import Row, StepsApart
from adamas_cli.engine.steps.compiled import CompiledSteps, Entry
from adamas_cli.engine.steps.describe import SPLIT, NoCompiledFormError
from adamas_cli.engine.tokens_to_host import TokenSender

MOST_TOGETHER = LARGEST_STEP  # answers running at once
NOTHING = torch.empty(0, dtype=torch.int64)


class Together(Protocol):
    """What takes a step for several seats. ahead: whether the host does other work meanwhile."""

    ahead: bool

    def row(self, cache: KVCache, mode: Mode) -> Row | None:
        """What it knows of a sequence between its steps."""

    def prepare(self, cache: KVCache, mode: Mode) -> None:
        """Do what takes long before the first step of an answer that is alone."""

    def most(self, seat: Seat) -> int:
        """How many tokens of a seat a step should take, if it is the only one."""

    def joins(self, seat: Seat, other: Seat) -> bool:
        """Whether a step can take the tokens of both."""

    def step(self, seats: Sequence[Seat]) -> tuple[Tensor, Tensor | None]:
        """Compute the pending tokens of these seats. The logits after each token, [n, vocabulary], and the
        greedy tokens, int64 [2, n], see `drawn.together`, if the step gives them.
        """


class _Compiled:
    """Steps on a CPU, each of one or a few tokens of every seat."""

    ahead = False

    def __init__(self, model: Model) -> None:
        self._steps = CompiledSteps(model, {layer.kind for layer in model.shape.by_layer})

    def row(self, cache: KVCache, mode: Mode) -> None:
        return None

    def prepare(self, cache: KVCache, mode: Mode) -> None:
        pass

    def most(self, seat: Seat) -> int:
        return self._steps.most(seat.cache)

    def joins(self, seat: Seat, other: Seat) -> bool:
        return True

    def step(self, seats: Sequence[Seat]) -> tuple[Tensor, Tensor | None]:
        logits = self._steps.step(*(Entry(seat.cache, seat.left.tolist(), seat.mode) for seat in seats))
        return logits.clone(), None


class _Apart:
    """Steps by Triton's kernels, each of one token of every seat."""

    ahead = True

    def __init__(self, model: Model, *, captures: bool) -> None:
        self._steps = StepsApart.of(model, captures=captures)

    def row(self, cache: KVCache, mode: Mode) -> Row:
        return Row(cache, mode)

    def prepare(self, cache: KVCache, mode: Mode) -> None:
        self._steps.prepare(Row(cache, mode))

    def most(self, seat: Seat) -> int:
        return 1

    def joins(self, seat: Seat, other: Seat) -> bool:
        return _row(seat).likeness == _row(other).likeness

    def step(self, seats: Sequence[Seat]) -> tuple[Tensor, Tensor | None]:
        rows = [_row(seat) for seat in seats]
        for row, seat in zip(rows, seats, strict=True):
            row.token = seat.left
        return self._steps.step(rows)


def _row(seat: Seat) -> Row:
    assert seat.row is not None
    return seat.row


class Batch:
    """The answers over one model that decode together. graphs: replay their steps on a GPU as CUDA graphs, if
    possible. steps: how many were taken; rows: tokens in all of them.
    """

    def __init__(self, model: Model, *, graphs: bool = True) -> None:
        self.steps = self.rows = 0
        self._model, self._graphs = model, graphs
        self._seats: list[Seat] = []
        self._together: Together | None = None
        self._sender = TokenSender()

    def seat(self, cache: KVCache, mode: Mode) -> Seat:
        """A place for an answer that attends in this mode. Raises NoCompiledFormError if nothing takes steps
        of several answers.
        """
        steps = self._steps()
        seat = Seat(self, cache, mode, steps.row(cache, mode), ahead=steps.ahead)
        self._seats.append(seat)
        return seat

    def prepare(self, cache: KVCache, mode: Mode) -> None:
        """Have the step of an answer that is alone compiled and captured, before the first one."""
        self._steps().prepare(cache, mode)

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

    def _steps(self) -> Together:
        """What takes the steps of all answers. Raises NoCompiledFormError if nothing does."""
        if self._together is None:
            if self._model.ranks is not None:
                raise NoCompiledFormError(SPLIT)
            on_gpu = self._model.dense is not None
            self._together = _Apart(self._model, captures=self._graphs) if on_gpu else _Compiled(self._model)
        return self._together

    def most(self, seat: Seat) -> int:
        """How many tokens of a seat a step should take, so that every answer fits."""
        return self._steps().most(seat) if len(self._seats) == 1 else 1

    def leave(self, seat: Seat) -> None:
        """An answer ends; its pending tokens are dropped."""
        if seat in self._seats:
            self._seats.remove(seat)

    def expects_beside(self, one: Seat) -> bool:
        """Whether others than this seat have tokens that may be computed before they are begun."""
        return any(seat is not one and seat.expects for seat in self._seats)

    def seats_beside(self, one: Seat) -> bool:
        """Whether there are others whose steps this seat's tokens may join."""
        steps = self._steps()
        return any(seat is not one and steps.joins(one, seat) for seat in self._seats)

    def step(self, first: Seat) -> None:
        """Compute the pending tokens of this seat, and those of others as far as they fit in one step. Tokens
        that others are expected to begin with are computed too.
        """
        steps = self._steps()
        together, room = [first], LARGEST_STEP - first.left.numel()
        for seat in self._seats:
            if seat is not first and 0 < (new := seat.next.numel()) <= room and steps.joins(first, seat):
                together.append(seat)
                room -= new
        together.sort(key=self._seats.index)  # usually those of the previous step, whose records exist
        together.sort(key=lambda seat: -seat.next.numel())
        for seat in together:
            seat.whole = False
            seat.guess()
        logits, drawn = steps.step(together)
        self.steps, self.rows = self.steps + 1, self.rows + len(logits)
        sizes = [seat.left.numel() for seat in together]
        each: Sequence[Drawn | None] = [None] * len(together)
        if drawn is not None:
            each = self._sender.send_each(drawn)
        for seat, its, greedy in zip(together, logits.split(sizes), each, strict=True):
            seat.took(its, greedy, alone=len(together) == 1)


class Seat:
    """One answer's place in a batch; see `Passes`.

    left: pending tokens, int64 [n]. row: what steps know of its sequence. whole: whether its cache is
    consistent; an interrupted step that another answer requested may break it. alone: whether its last step
    served no other answer.
    """

    def __init__(self, batch: Batch, cache: KVCache, mode: Mode, row: Row | None, *, ahead: bool) -> None:
        self.cache, self.mode, self.row, self.ahead = cache, mode, row, ahead
        self.left = NOTHING
        self.whole = self.alone = True
        self._batch = batch
        self._likeliest = False
        self._expected = NOTHING
        self._guessed: Tensor | None = None  # the expected token, if it was computed before it was begun
        self._taken: deque[tuple[Tensor, Drawn | None]] = deque()  # results that nobody has asked for

    @property
    def next(self) -> Tensor:
        """The tokens that a step should take, int64 [n]: pending ones, else the expected one."""
        return self.left if self.left.numel() else self._expected

    @property
    def most(self) -> int:
        """See `Passes.most`."""
        return self._batch.most(self)

    @property
    def awaited(self) -> bool:
        """See `Passes.awaited`: they expect a token that may be computed."""
        return self._batch.expects_beside(self)

    @property
    def beside_others(self) -> bool:
        """See `Passes.beside_others`."""
        return self._batch.seats_beside(self)

    @property
    def computed(self) -> bool:
        """See `Passes.computed`."""
        return not self.left.numel()

    @property
    def expects(self) -> bool:
        """Whether its next token is expected and nothing else is pending."""
        return not self.left.numel() and self._expected.numel() > 0

    def expect(self, token: Tensor) -> None:
        """See `Passes.expect`."""
        if self._guessed is None:  # else what is expected now was computed already
            self._expected = token

    def guess(self) -> None:
        """A step begins: without pending tokens it takes the expected one."""
        if not self.left.numel():
            self.left = self._guessed = self._expected
        self._expected = NOTHING

    def begin(self, tokens: Tensor, *, likeliest: bool = False) -> None:
        """See `Passes.begin`."""
        guessed, self._guessed, self._expected = self._guessed, None, NOTHING
        self._likeliest = likeliest
        if guessed is tokens:
            self._expect_likeliest()
            return
        if guessed is not None:
            self._drop()
        self.left = tokens

    def finish(self) -> tuple[Tensor, Drawn | None]:
        """See `Passes.finish`."""
        if self.left.numel():
            self._batch.step(self)
        assert self._taken, "nothing was begun"
        return self._taken.popleft()

    def leave(self) -> None:
        """See `Passes.leave`."""
        self._batch.leave(self)
        if self.row is not None:
            while self._taken:  # by steps that others asked for
                self._drop()
            self.row.settle()
            self.cache.tell_length()

    def took(self, logits: Tensor, greedy: Drawn | None, *, alone: bool) -> None:
        """The pending tokens are computed."""
        self.left, self.whole, self.alone = NOTHING, True, alone
        self._taken.append((logits, greedy))
        if self._guessed is None:
            self._expect_likeliest()

    def _expect_likeliest(self) -> None:
        """Expect what is the likeliest token after the last step, if the answer goes on with that."""
        _, greedy = self._taken[-1]
        if self.ahead and self._likeliest and greedy is not None:
            self._expected = greedy.token

    def _drop(self) -> None:
        """Forget a token that was computed although it is not said."""
        self._taken.pop()
        if self.row is not None:
            self.row.retract()
