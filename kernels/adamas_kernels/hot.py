"""Copies of chosen rows, for keys and values in memory that a GPU reads slowly.

Most tokens that a step chooses were chosen by the step before it. So their rows stay in slots of the GPU's
own memory, which are overwritten in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Steps of which slots hold all choices, if no two query heads choose the same token; more where memory is
# free. After a million tokens of text, 39 % of 4,032 choices were to be fetched with two, 21 % with four and
# 18 % with eight (docs/performance.md).
LEAST_STEPS, MOST_STEPS = 2, 4
ALIGNMENT = 16  # bytes: where values begin after a row's keys


@dataclass
class HotRows:
    """R slots for rows: a token's key and its value side by side, as they lie in the cache.

    rows: uint8 [B, K, R, W]; keys, values: their parts, [B, K, R, row]. place: int32 [B, K, C], the slot that
    last got each token; token: int32 [B, K, R], the token in each slot, -1 for none. A token's copy exists if
    the slot at its place has that token. stamp: int32 [B, K, R], the length of the cache when the slot was
    filled. begin: int32 [B, K], the slot to overwrite next; taken: int32 [B, K], how many slots the current
    step has taken so far.
    """

    rows: Tensor
    keys: Tensor
    values: Tensor
    place: Tensor
    token: Tensor
    stamp: Tensor
    begin: Tensor
    taken: Tensor

    @classmethod
    def beside(
        cls,
        keys: Tensor,
        values: Tensor,
        device: torch.device,
        capacity: int,
        chosen: int,
        steps: int = LEAST_STEPS,
    ) -> HotRows:
        """Empty slots for rows like these, [B, K, S, row], on a device. capacity: C, tokens in the cache;
        chosen: most choices of a step for each KV head; steps: of which slots hold all choices. Raises
        ValueError if they are not side by side.
        """
        batch, heads = keys.shape[:2]
        slots = min(steps * chosen, capacity + chosen)
        whole = side_by_side(keys, values)
        rows = torch.empty(batch, heads, slots, whole.shape[3], dtype=torch.uint8, device=device)
        first, second = (x.shape[3] * x.element_size() for x in (keys, values))
        start = values.data_ptr() - keys.data_ptr()

        def numbers(value: int, *more: int) -> Tensor:
            return torch.full((batch, heads, *more), value, dtype=torch.int32, device=device)

        return cls(
            rows,
            rows[..., :first].view(keys.dtype),
            rows[..., start : start + second].view(values.dtype),
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


def side_by_side(keys: Tensor, values: Tensor) -> Tensor:
    """The rows that keys and values, [B, K, S, row] each, are parts of, as bytes: uint8 [B, K, S, W]. Raises
    ValueError if a token's value does not follow its key.
    """
    first, second = keys.view(torch.uint8), values.view(torch.uint8)
    start = second.data_ptr() - first.data_ptr()
    width = -(-(start + second.shape[3]) // ALIGNMENT) * ALIGNMENT
    steps = first.stride()[:3]
    apart = start < first.shape[3] or any(width > step for step in steps if step)
    if apart or steps != second.stride()[:3] or start % ALIGNMENT:
        raise ValueError("keys and values are not side by side")
    return first.as_strided((*first.shape[:3], width), (*steps, 1))
