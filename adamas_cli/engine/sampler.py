"""From logits to the next token: greedy, or drawn after temperature, top-k, top-p and min-p."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from adamas_cli.engine.events import Likelihood
from adamas_cli.engine.sampling import Sampling


class Sampler:
    """Draws the tokens of one answer; with a seed, the same logits give the same tokens. greedy: whether each
    is the likeliest of all, and nothing more is asked of the sampler.
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
        self._drawn: deque[tuple[Tensor, Tensor, Tensor] | None] = deque()  # not yet told
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
        """The next token's id after each of several, from their logits [n, vocabulary], drawn as it is asked
        for.
        """
        if self.greedy:
            yield from logits.argmax(-1).tolist()
            return
        for one in logits:
            yield int(self.next(one))

    def next(self, logits: Tensor) -> Tensor:
        """The next token's id, int64 [1], from the last position's logits [vocabulary]. Without a constraint
        it waits for nothing.
        """
        token = self._next(logits)
        if self._alternatives is not None:
            logprobs = logits.float().log_softmax(-1)
            self._drawn.append((logprobs[token], *logprobs.topk(self._alternatives)))
        return token

    def likelihood(self) -> Likelihood | None:
        """Of the oldest token that was drawn and not yet told of; None where it is not asked for."""
        if not self._drawn or (drawn := self._drawn.popleft()) is None:
            return None
        logprob, values, ids = drawn
        return Likelihood(float(logprob), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def replace(self) -> None:
        """Another token is said than was drawn, of which nothing is told; those after it are forgotten."""
        if self._alternatives is not None:
            self._drawn = deque([None])

    def _next(self, logits: Tensor) -> Tensor:
        if self._constraint is None:
            return self._draw(logits)
        allowed = torch.from_numpy(self._constraint.allowed(len(logits))).to(logits.device)
        token = self._draw(logits.float().masked_fill(~allowed, -torch.inf))
        self._constraint.take(int(token))
        return token

    def _draw(self, logits: Tensor) -> Tensor:
        if self._takes_likeliest:
            return logits.argmax().unsqueeze(0)
        scores = self._warpers(None, logits.float().unsqueeze(0))
        return torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[0]
