"""Where the tokens of an answer come from: one step after another, or passes that check drafts."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode
from adamas_cli.engine.drafts import Drafter
from adamas_cli.engine.events import Drafted
from adamas_cli.engine.sampler import Drawn, Sampler
from adamas_cli.engine.steps.stepper import Stepper
from adamas_cli.engine.tokens_to_host import TokenReader


class Saying(Protocol):
    """The tokens of one answer, in turn: `next` gives one, `feed` has the model go on from it.

    logits: after the last token that was fed, [vocabulary].
    """

    logits: Tensor

    @property
    def drafted(self) -> Drafted:
        """What became of drafts so far."""
        ...

    def next(self, left: int) -> int:
        """The next token, of which this many are left to say. Raises NotFiniteError."""
        ...

    def feed(self, left: int) -> None:
        """Feed the token that was said last, unless that was done; this many are left to say."""
        ...

    def say(self, token: int) -> None:
        """Say this token next, whatever the model would."""
        ...

    def end(self, tokens: int) -> None:
        """The answer ends: have no more than this many tokens in the cache."""
        ...


class OneByOne:
    """A step for each token. logits: before the first one, [vocabulary]."""

    def __init__(self, stepper: Stepper, mode: Mode, sampler: Sampler, logits: Tensor) -> None:
        self.logits = logits
        self._stepper, self._mode, self._sampler = stepper, mode, sampler
        self._device = logits.device
        self._reader = TokenReader(self._device)
        self._drawn = sampler.next(logits)
        self._passes = 0
        # A GPU gets the next step before the host knows the token that it starts from, and so one too many
        # at the end; a CPU would lose that step's time.
        self._ahead = self._device.type == "cuda"
        self._first, self._fed = True, False

    @property
    def drafted(self) -> Drafted:
        """See `Saying.drafted`."""
        return Drafted(passes=self._passes)

    def next(self, left: int) -> int:
        """See `Saying.next`."""
        self._reader.send(self._drawn)
        # Nothing, compiling least of all, delays the first token.
        self._fed = left > 1 and self._ahead and not self._first
        self._first = False
        if self._fed:
            self._step()
        return self._reader.receive()

    def feed(self, left: int) -> None:
        """See `Saying.feed`."""
        if not self._fed:
            self._step()

    def say(self, token: int) -> None:
        """See `Saying.say`."""
        self._drawn = Drawn(*torch.tensor([[token], [1]], device=self._device))

    def end(self, tokens: int) -> None:
        """See `Saying.end`: on a GPU there may be one more, which whoever reads on forgets."""

    def _step(self) -> None:
        self._passes += 1
        self.logits, greedy = self._stepper.step(self._drawn.token, self._mode)
        known = self._sampler.greedy and greedy is not None
        self._drawn = greedy if known and greedy is not None else self._sampler.next(self.logits)


class Checked:
    """Passes over the last token and a draft of what comes after it, as far as one pays.

    After each token of the draft the sampler draws as it would without; the first one that it draws
    otherwise is what is said, and the rest of the draft is taken back. So tokens are those that would be said
    without drafts, and drawn ones are so with any temperature: each comes from the model's own distribution.
    """

    def __init__(
        self, stepper: Stepper, cache: KVCache, mode: Mode, sampler: Sampler, drafter: Drafter, logits: Tensor
    ) -> None:
        self.logits = logits
        self._stepper, self._cache, self._mode = stepper, cache, mode
        self._sampler, self._drafter = sampler, drafter
        self._coming = deque([sampler.next(logits).id()])  # all but the last are in the cache
        self._said = 0  # the last token
        self._start, self._before = cache.get_seq_length(), list[Any]()  # before the last pass
        self._proposed = self._accepted = self._passes = 0

    @property
    def drafted(self) -> Drafted:
        """See `Saying.drafted`."""
        return Drafted(self._proposed, self._accepted, self._passes)

    def next(self, left: int) -> int:
        """See `Saying.next`."""
        self._said = self._coming.popleft()
        self._drafter.say(self._said)
        return self._said

    def feed(self, left: int) -> None:
        """See `Saying.feed`."""
        if self._coming:
            return
        self._settle()
        draft = self._drafter.propose(min(left, self._stepper.most(self._mode)))
        begun, cache = time.perf_counter(), self._cache
        self._start, self._before = cache.get_seq_length(), cache.before_step() if draft else []
        tokens = torch.tensor([self._said, *draft], device=self.logits.device)
        logits, _ = self._stepper.steps(tokens, self._mode)
        for token, proposed in zip(self._sampler.each(logits), [*draft, None], strict=True):
            self._coming.append(token)
            if token != proposed:
                break
        self.logits = logits[len(self._coming) - 1]
        self._retract(self._start + len(self._coming))
        self._drafter.costs.took(1 + len(draft), time.perf_counter() - begun)
        self._passes += 1
        self._proposed += len(draft)
        self._accepted += len(self._coming) - 1

    def say(self, token: int) -> None:
        """See `Saying.say`: what would have been said is forgotten."""
        self._retract(self._cache.get_seq_length() - max(0, len(self._coming) - 1))
        self._coming = deque([token])

    def end(self, tokens: int) -> None:
        """See `Saying.end`."""
        self._retract(tokens)
        self._settle()

    def _retract(self, tokens: int) -> None:
        """Of the last pass, have no more than this many tokens in the cache."""
        if tokens < self._cache.get_seq_length():
            self._cache.retract(tokens, self._before)

    def _settle(self) -> None:
        """Count what the tokens of the last pass attended to that stay."""
        if self._mode.tally is not None:
            self._mode.tally.settle(self._cache.get_seq_length() - self._start)
