"""The divergence of next-token distributions, position by position, with the mean's interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adamas_cli.errors import NotFiniteError

RESAMPLES = 1000
ROWS = 16  # positions compared at a time: with a vocabulary of 150,000, 16 rows take 10 MB


@dataclass(frozen=True)
class Divergence:
    """Per position, float64 [M]: KL divergence from the reference distribution in nats, whether both have the
    same likeliest token, and the negative log-likelihood of the true next token under both.
    """

    kl: np.ndarray
    same: np.ndarray
    loss: np.ndarray
    full_loss: np.ndarray

    @property
    def perplexity(self) -> float:
        """The perplexity of the distribution being compared."""
        return float(np.exp(self.loss.mean()))

    @property
    def perplexity_ratio(self) -> float:
        """The ratio of the two perplexities."""
        return float(np.exp((self.loss - self.full_loss).mean()))


def diverge(full: Tensor, other: Tensor, targets: Tensor) -> Divergence:
    """Compare logits [M, vocabulary] of full attention and of another; targets: int [M] true next tokens.
    Raises NotFiniteError if a logit is not a number.
    """
    parts: list[tuple[Tensor, ...]] = []
    targets = targets.to(full.device)
    for p, q, target in zip(full.split(ROWS), other.split(ROWS), targets.split(ROWS), strict=True):
        log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
        same = log_p.argmax(-1) == log_q.argmax(-1)
        chosen = target.unsqueeze(-1)
        parts.append((kl, same, -log_q.gather(-1, chosen)[:, 0], -log_p.gather(-1, chosen)[:, 0]))
    columns = (torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True))
    found = Divergence(*columns)
    if np.isnan(found.kl).any():
        raise NotFiniteError
    return found


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of values [M]; deterministic."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
