"""What a model's attention does besides scaling its scores: windows, soft caps and learned sinks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Softmax:
    """How the scores of one layer become weights.

    window: the number of last tokens that a query sees, its own included; None sees all. softcap: a score s
    becomes softcap * tanh(s / softcap); 0 changes nothing. sinks: [H], for each query head a score without
    key and value that takes its share of the softmax.
    """

    window: int | None = None
    softcap: float = 0.0
    sinks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window has at least 1 token, not {self.window}")
        if self.softcap < 0:
            raise ValueError(f"a soft cap is positive, not {self.softcap}")

    def of_heads(self, which: slice) -> Softmax:
        """The softmax of some query heads."""
        return self if self.sinks is None else replace(self, sinks=self.sinks[which])

    def banded(self, tokens: int) -> bool:
        """Whether torch's fused kernels cannot compute attention over this many tokens."""
        return self.softcap > 0 or (self.window is not None and tokens > self.window)

    def first_seen(self, length: int) -> int:
        """The first token that a token after `length` others sees."""
        return 0 if self.window is None else max(0, length + 1 - self.window)

    def capped(self, scores: Tensor) -> Tensor:
        """Scaled scores, soft-capped."""
        return self.softcap * (scores / self.softcap).tanh() if self.softcap else scores

    def with_sinks(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Add the sinks to attention without them: outputs [B, H, N, D] and log-sum-exps [B, H, N]."""
        if self.sinks is None:
            return out, lse
        excess = lse - self.sinks.to(lse.dtype)[:, None]
        share = excess.sigmoid().unsqueeze(-1)  # of the tokens
        return out * share.to(out.dtype), lse + torch.nn.functional.softplus(-excess)


PLAIN = Softmax()
