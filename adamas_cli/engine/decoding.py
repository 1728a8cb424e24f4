"""Where an answer's tokens come from: one step after another, or passes that check drafts (`checking.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from adamas_cli.cache.mode import Mode
from adamas_cli.engine.drawn import Drawn
from adamas_cli.engine.events import Drafted
from adamas_cli.engine.sampler import Sampler
from adamas_cli.engine.steps.stepper import Stepper
from adamas_cli.engine.tokens_to_host import TokenSender

if TYPE_CHECKING:
    from adamas_cli.ranks.group import Ranks


class Passes(Protocol):
    """Steps of one answer. alone: whether the last one served no other answer. whole: whether the cache holds
    only the tokens of complete steps. ahead: whether a step may be requested before the host knows its token.
    """

    alone: bool
    whole: bool
    ahead: bool

    @property
    def most(self) -> int:
        """How many tokens the next step should take at most."""
        ...

    @property
    def awaited(self) -> bool:
        """Whether other answers wait for the next step."""
        ...

    @property
    def beside_others(self) -> bool:
        """Whether other answers are in progress whose steps it can share."""
        ...

    @property
    def computed(self) -> bool:
        """Whether `finish` needs no step."""
        ...

    def expect(self, token: Tensor) -> None:
        """The next step will probably begin with this token, int64 [1]; it may be computed from now on."""
        ...

    def begin(self, tokens: Tensor, *, likeliest: bool = False) -> None:
        """Set the tokens, int64 [n], of the next step; they may be computed from now on. likeliest: whether
        the step after it will probably begin with the token that is then the likeliest.
        """
        ...

    def finish(self) -> tuple[Tensor, Drawn | None]:
        """The logits after each of them, [n, vocabulary], and the greedy token, if known and there is one
        token.
        """
        ...

    def leave(self) -> None:
        """There are no more steps; tokens begun but not computed are dropped."""
        ...


class Alone:
    """An answer whose steps serve no other: each is computed on request."""

    alone = whole = True
    awaited = beside_others = computed = False

    def __init__(self, stepper: Stepper, mode: Mode) -> None:
        self._stepper, self._mode = stepper, mode
        self.ahead = stepper.on_gpu
        self._tokens: Tensor

    @property
    def most(self) -> int:
        """See `Passes.most`."""
        return self._stepper.most(self._mode)

    def expect(self, token: Tensor) -> None:
        """See `Passes.expect`."""

    def begin(self, tokens: Tensor, *, likeliest: bool = False) -> None:
        """See `Passes.begin`."""
        self._tokens = tokens

    def finish(self) -> tuple[Tensor, Drawn | None]:
        """See `Passes.finish`."""
        return self._stepper.steps(self._tokens, self._mode)

    def leave(self) -> None:
        """See `Passes.leave`."""


class Saying(Protocol):
    """The tokens of one answer: `next` returns one, `feed` lets the model continue from it."""

    @property
    def logits(self) -> Tensor:
        """Those after the last computed token, [vocabulary]."""
        ...

    @property
    def drafted(self) -> Drafted:
        """Draft statistics so far."""
        ...

    def offer(self, left: int) -> None:
        """Before the first token: if other answers are in progress, have what follows it computed in their
        next step. left: how many tokens may be said.
        """
        ...

    def next(self, left: int) -> int:
        """The next token. left: how many tokens may still be said, including this one. Raises
        NotFiniteError.
        """
        ...

    def feed(self, left: int) -> None:
        """Have the last token computed, if it is not yet; this many are left to say. It is computed at the
        latest when the next one is requested.
        """
        ...

    def say(self, token: int) -> None:
        """Say this token next, instead of the model's choice."""
        ...

    def end(self, tokens: int) -> None:
        """The answer ends: keep at most this many tokens in the cache."""
        ...


class OneByOne:
    """A step for each token. logits: before the first one, [vocabulary]. ranks: that share the model; all say
    the tokens that the first one draws.

    For a token of a greedy answer that shares its steps, no operation of torch is called here: during each,
    another thread may take the interpreter.
    """

    def __init__(self, passes: Passes, sampler: Sampler, logits: Tensor, ranks: Ranks | None = None) -> None:
        self._logits = logits.unsqueeze(0)  # of the last step
        self._ranks = ranks
        self._passes, self._sampler = passes, sampler
        self._device = logits.device
        self._sender = TokenSender()
        self._draw(sampler.next(logits))
        self._count = 0
        # A GPU gets the next step before the host knows the token it starts from. So one step too many runs
        # at the end; on a CPU that would cost its time.
        self._ahead = passes.ahead
        self._first, self._fed, self._begun = True, False, False

    @property
    def logits(self) -> Tensor:
        """See `Saying.logits`."""
        return self._logits[0]

    @property
    def drafted(self) -> Drafted:
        """See `Saying.drafted`."""
        return Drafted(passes=self._count)

    def offer(self, left: int) -> None:
        """See `Saying.offer`."""
        if left > 1 and self._ahead and self._passes.beside_others:
            self._begin(left - 1)

    def next(self, left: int) -> int:
        """See `Saying.next`."""
        offered = self._first and self._begun
        if not offered:
            self._finish()
        coming = self._drawn
        # Nothing may delay the first token, least of all compiling, nor a step that only it would need; but
        # others' next tokens, which are computed in the same step, may not wait for it.
        self._fed = left > 1 and self._ahead and (not self._first or offered or self._passes.awaited)
        self._first = False
        if self._fed and not offered:
            self._begin(left - 1)
        if self._fed and (not offered or self._passes.computed):
            self._finish()
            if left > 2:
                self._passes.expect(self._drawn.token)
        return coming.id()

    def feed(self, left: int) -> None:
        """See `Saying.feed`."""
        if not self._fed:
            self._begin(left)

    def say(self, token: int) -> None:
        """See `Saying.say`."""
        self._finish()
        self._draw(Drawn(*torch.tensor([[token], [1]], device=self._device)))

    def end(self, tokens: int) -> None:
        """See `Saying.end`: one extra token may remain, which the reader of these tokens drops."""

    def _begin(self, left: int) -> None:
        """Have a token computed, after which this many are left to say."""
        self._count += 1
        self._begun = True
        self._passes.begin(self._drawn.token, likeliest=self._sampler.greedy and left > 1)

    def _finish(self) -> None:
        """Compute the step that was begun, if any."""
        if not self._begun:
            return
        self._logits, greedy = self._passes.finish()
        self._begun = False
        self._draw(self._sampler.after(self._logits, greedy))

    def _draw(self, drawn: Drawn) -> None:
        """This token is the next one. It goes to the host at once: a copy that is requested after the next
        step waits for that step too.
        """
        if self._ranks is not None:
            self._ranks.follow(drawn.token)
        self._drawn = self._sender.send(drawn)
