"""Copies of chosen rows, for keys and values in memory that a GPU reads slowly.

Most tokens that a step chooses were chosen by the step before it. So their rows stay in slots of the GPU's
own memory, which are overwritten in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 3  # of which slots hold all choices, if no two query heads choose the same token


@dataclass
class HotRows:
    """R slots for rows of keys and values, [B, K, R, row].

    place: int32 [B, K, C], the slot that last got each token; token: int32 [B, K, R], the token in each slot,
    -1 for none. A token's copy exists if the slot at its place has that token. stamp: int32 [B, K, R], the
    length of the cache when the slot was filled. begin: int32 [B, K], the slot to overwrite next; taken:
    int32 [B, K], how many slots the current step has taken so far.
    """

    keys: Tensor
    values: Tensor
    place: Tensor
    token: Tensor
    stamp: Tensor
    begin: Tensor
    taken: Tensor

    @classmethod
    def beside(
        cls, keys: Tensor, values: Tensor, device: torch.device, capacity: int, chosen: int
    ) -> HotRows:
        """Empty slots for rows like these, [B, K, S, row], on a device. capacity: C, tokens in the cache;
        chosen: most choices of a step for each KV head.
        """
        batch, heads = keys.shape[:2]
        slots = min(STEPS * chosen, capacity + chosen)

        def numbers(value: int, *more: int) -> Tensor:
            return torch.full((batch, heads, *more), value, dtype=torch.int32, device=device)

        def rows(like: Tensor) -> Tensor:
            return torch.empty(batch, heads, slots, like.shape[3], dtype=like.dtype, device=device)

        return cls(
            rows(keys),
            rows(values),
            place=numbers(0, capacity),
            token=numbers(-1, slots),
            stamp=numbers(-1, slots),
            begin=numbers(0),
            taken=numbers(0),
        )

    def serves(self, chosen: int) -> bool:
        """Whether a step with this many choices for each KV head leaves some slots as they are."""
        return chosen < self.token.shape[2]

    def forget(self) -> None:
        """Copy everything again: tokens may be others now."""
        self.token.fill_(-1)
