"""From logits to the next token: greedy, or drawn after temperature, top-k, top-p and min-p."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from adamas_cli.engine.drawn import Drawn, finite
from adamas_cli.engine.events import Likelihood
from adamas_cli.engine.sampling import Sampling


def require_finite(logits: Tensor) -> None:
    """Raise NotFiniteError unless the logits of a token are finite; this waits for the device."""
    finite(0, float(logits.max()))


class Sampler:
    """Draws the tokens of one answer; with a seed, the same logits give the same tokens. greedy: whether each
    is simply the likeliest of all.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._constraint = sampling.constraint()
        self._alternatives = sampling.alternatives()
        self._untold: deque[tuple[Tensor, Tensor, Tensor] | None] = deque()
        self._takes_likeliest = sampling.temperature == 0
        self.greedy = self._takes_likeliest and self._constraint is None and self._alternatives is None
        self._warpers = LogitsProcessorList()
        if self._takes_likeliest:
            return
        self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def each(self, logits: Tensor) -> Iterator[int]:
        """The next token's id after each of several positions, from their logits [n, vocabulary], drawn
        lazily.
        """
        if self.greedy:
            weights, tokens = logits.max(-1)
            yield from map(finite, tokens.tolist(), weights.tolist())
            return
        for one in logits:
            yield self.next(one).id()

    def next(self, logits: Tensor) -> Drawn:
        """The next token, from the last position's logits [vocabulary]. Without a constraint it does not wait
        for the device.
        """
        drawn = self._next(logits)
        if self._alternatives is not None:
            logprobs = logits.float().log_softmax(-1)
            self._untold.append((logprobs[drawn.token], *logprobs.topk(self._alternatives)))
        return drawn

    def after(self, logits: Tensor, greedy: Drawn | None) -> Drawn:
        """The next token after a step, from its logits [1, vocabulary]: the greedy one, if the step gives it
        and that is what is drawn.
        """
        return greedy if self.greedy and greedy is not None else self.next(logits[0])

    def likelihood(self) -> Likelihood | None:
        """That of the oldest drawn token not yet reported; None if not requested."""
        if not self._untold or (told := self._untold.popleft()) is None:
            return None
        logprob, values, ids = told
        return Likelihood(float(logprob), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def replace(self) -> None:
        """A token other than the drawn one is said: nothing is reported for it, and later draws are
        dropped.
        """
        if self._alternatives is not None:
            self._untold = deque([None])

    def _next(self, logits: Tensor) -> Drawn:
        if self._constraint is None:
            return self._draw(logits)
        allowed = torch.from_numpy(self._constraint.allowed(len(logits))).to(logits.device)
        drawn = self._draw(logits.float().masked_fill(~allowed, -torch.inf))
        self._constraint.take(drawn.id())
        return drawn

    def _draw(self, logits: Tensor) -> Drawn:
        if self._takes_likeliest:
            weight, token = logits.max(0, keepdim=True)
            return Drawn(token, weight)
        likely = self._warpers(None, logits.float().unsqueeze(0)).softmax(-1)[0]
        # Draws as `torch.multinomial` does, which also waits for the device to check the probabilities.
        chances = likely / torch.empty_like(likely).exponential_(generator=self._generator)
        token = chances.argmax(0, keepdim=True)
        return Drawn(token, likely[token])
