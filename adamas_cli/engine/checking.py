"""Answers whose next tokens are looked up in the text (`drafts.py`) and checked, several in one pass."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import torch
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode
from adamas_cli.engine.decoding import Passes
from adamas_cli.engine.drafts import Drafter
from adamas_cli.engine.drawn import Drawn
from adamas_cli.engine.events import Drafted
from adamas_cli.engine.sampler import Sampler
from adamas_cli.engine.tokens_to_host import TokenSender


class _Checking(ABC):
    """Passes over the last token and a draft of the following ones, as far as drafting pays.

    After each draft token the sampler draws as it would without drafts. At the first difference its own token
    is said, and the rest of the draft is rolled back. So answers equal those without drafts at any
    temperature: each token comes from the model's own distribution.
    """

    def __init__(
        self, passes: Passes, cache: KVCache, mode: Mode, sampler: Sampler, drafter: Drafter, logits: Tensor
    ) -> None:
        self.logits = logits
        self._passes, self._cache, self._mode = passes, cache, mode
        self._sampler, self._drafter = sampler, drafter
        self._coming = deque[int]()  # the next tokens on the host, of which all but the last are in the cache
        self._said = 0  # the last token
        self._start = cache.get_seq_length()  # before the last pass
        self._proposed = self._accepted = self._count = 0

    @property
    def drafted(self) -> Drafted:
        """See `Saying.drafted`."""
        return Drafted(self._proposed, self._accepted, self._count)

    def offer(self, left: int) -> None:
        """See `Saying.offer`: nothing, since a draft is looked up after each token."""
        return

    def say(self, token: int) -> None:
        """See `Saying.say`: tokens already drawn are dropped."""
        self._finish()
        self._retract(self._cache.get_seq_length() - max(0, len(self._coming) - 1))
        self._coming = deque([token])

    @abstractmethod
    def _finish(self) -> None:
        """Compute what was begun, if anything, and check its draft."""

    @abstractmethod
    def _give_back(self, tokens: int) -> None:
        """Keep this many tokens in the cache, fewer than it has, all others of the last pass."""

    def _check(self, draft: list[int], logits: Tensor) -> None:
        """Draw after each token of a pass, from its logits [n, vocabulary], as long as the draft agrees."""
        for token, proposed in zip(self._sampler.each(logits), [*draft, None], strict=True):
            self._coming.append(token)
            if token != proposed:
                break
        self.logits = logits[len(self._coming) - 1]
        self._retract(self._start + len(self._coming))
        self._proposed += len(draft)
        self._accepted += len(self._coming) - 1

    def _retract(self, tokens: int) -> None:
        """Keep at most this many tokens in the cache."""
        if tokens < self._cache.get_seq_length():
            self._give_back(tokens)

    def _settle(self) -> None:
        """Count the attention of the last pass's tokens that stay."""
        if self._mode.tally is not None:
            self._mode.tally.settle(self._cache.get_seq_length() - self._start)


class Checked(_Checking):
    """A pass at a time, of one token where no draft pays."""

    def __init__(
        self, passes: Passes, cache: KVCache, mode: Mode, sampler: Sampler, drafter: Drafter, logits: Tensor
    ) -> None:
        super().__init__(passes, cache, mode, sampler, drafter, logits)
        self._coming.append(sampler.next(logits).id())
        self._draft: list[int] | None = None  # of a pass that was begun
        self._before = list[Any]()  # the cache before the last pass

    def next(self, left: int) -> int:
        """See `Saying.next`."""
        self._finish()
        self._said = self._coming.popleft()
        self._drafter.say(self._said)
        return self._said

    def feed(self, left: int) -> None:
        """See `Saying.feed`."""
        if self._coming:
            return
        self._settle()
        self._draft = self._drafter.propose(self._passes.most, left)
        cache = self._cache
        self._start, self._before = cache.get_seq_length(), cache.before_step() if self._draft else []
        self._passes.begin(torch.tensor([self._said, *self._draft], device=self.logits.device))

    def end(self, tokens: int) -> None:
        """See `Saying.end`."""
        if self._draft is not None and self._cache.get_seq_length() > self._start:
            tokens = self._start + 1  # another answer's turn computed tokens that nobody has seen yet
        self._retract(tokens)
        self._settle()

    def _finish(self) -> None:
        if self._draft is None:
            return
        begun = time.perf_counter()
        logits, _ = self._passes.finish()
        draft, self._draft = self._draft, None
        self._check(draft, logits)
        if self._passes.alone:
            self._drafter.costs.took(1 + len(draft), time.perf_counter() - begun)
        self._count += 1

    def _give_back(self, tokens: int) -> None:
        self._cache.retract(tokens, self._before)


class CheckedAhead(_Checking):
    """Passes on a GPU, which gets a step before the host knows the token it starts from, as in `OneByOne`,
    while no draft is in sight. Where one is likely to pay, the host waits for the last token instead, looks
    it up and has a draft checked.

    A pass of several tokens is rounded otherwise than steps of one, so of two tokens with almost the same
    logits another one may be said than without drafts.
    """

    def __init__(
        self, passes: Passes, cache: KVCache, mode: Mode, sampler: Sampler, drafter: Drafter, logits: Tensor
    ) -> None:
        super().__init__(passes, cache, mode, sampler, drafter, logits)
        self._sender = TokenSender()
        # Without tokens on the host, the next one is on its way there.
        self._drawn: Drawn
        self._draw(sampler.next(logits))
        self._fed = False  # whether the last token is in the cache
        self._begun = False  # whether a pass waits to be launched
        self._draft: list[int] = []  # of the last pass, until it is checked
        self._unchecked = logits  # after each of that pass's tokens
        self._since = 0.0  # when the last pass with a draft began
        self._received: float | None = None  # when the last token came, if its step was launched before

    def next(self, left: int) -> int:
        """See `Saying.next`."""
        self._finish()
        if self._coming:
            self._said = self._coming.popleft()
            self._fed = bool(self._coming)
        else:
            self._said = self._receive(left - 1)
        self._drafter.say(self._said)
        return self._said

    def feed(self, left: int) -> None:
        """See `Saying.feed`."""
        if self._fed:
            return
        self._settle()
        self._received = None
        self._draft = self._drafter.propose(self._passes.most, left)
        self._start, self._since = self._cache.get_seq_length(), time.perf_counter()
        self._begin(torch.tensor([self._said, *self._draft], device=self.logits.device))
        if self._count:  # nothing may delay the first token, least of all compiling
            self._launch()

    def end(self, tokens: int) -> None:
        """See `Saying.end`: one extra token may remain, which the reader of these tokens drops."""
        if self._draft and not self._begun:
            self._retract(self._start + 1)
        elif self._coming:
            self._retract(tokens)
        self._draft, self._begun = [], False
        self._settle()

    def _receive(self, left: int) -> int:
        """The token on its way; this many are left to say after it. Before it arrives, the step after it is
        launched, if no draft is likely then.
        """
        coming = self._drawn
        ahead = self._count > 0 and left > 0 and not self._drafter.propose(self._passes.most, left)
        if ahead:
            self._begin(self._drawn.token)
            self._launch()
        token, before = coming.id(), self._received
        now = time.perf_counter()
        if before is not None:
            self._drafter.costs.took(1, now - before)
        self._fed, self._received = ahead, now if ahead else None
        return token

    def _begin(self, tokens: Tensor) -> None:
        self._passes.begin(tokens)
        self._begun = True

    def _launch(self) -> None:
        """Have the device compute the pass that was begun, if any."""
        if not self._begun:
            return
        logits, greedy = self._passes.finish()
        self._count += 1
        self._begun = False
        if self._draft:
            self._unchecked = logits
            return
        self.logits = logits[0]
        self._draw(self._sampler.after(logits, greedy))

    def _draw(self, drawn: Drawn) -> None:
        """This token is the next one; see `OneByOne`."""
        self._drawn = self._sender.send(drawn)

    def _finish(self) -> None:
        self._launch()
        if not self._draft:
            return
        draft, self._draft = self._draft, []
        self._check(draft, self._unchecked)
        self._drafter.costs.took(1 + len(draft), time.perf_counter() - self._since)

    def _give_back(self, tokens: int) -> None:
        self._cache.retract_in_place(tokens)
