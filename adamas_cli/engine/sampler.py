"""From logits to the next token: greedy, or drawn after temperature, top-k, top-p and min-p."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adamas_cli.engine.sampling import Sampling


class Sampler:
    """Draws tokens by one `Sampling`; with a seed, the same logits give the same tokens."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self.greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if self.greedy:
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
        """The next token's id behind each of several, from their logits [n, vocabulary], drawn as it is asked
        for.
        """
        if self.greedy:
            yield from logits.argmax(-1).tolist()
            return
        for one in logits:
            yield int(self.next(one))

    def next(self, logits: Tensor) -> Tensor:
        """The next token's id, int64 [1], from the last position's logits [vocabulary]; waits for nothing."""
        if self.greedy:
            return logits.argmax().unsqueeze(0)
        scores = self._warpers(None, logits.float().unsqueeze(0))
        return torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[0]
