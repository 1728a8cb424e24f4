"""How many answers decode together."""

from __future__ import annotations

from adamas_kernels.contract import LARGEST_STEP

SPARE = 0.5  # of the memory that is free


def answers_at_once(each: int, free: int) -> int:
    """As many as one step takes, or fewer where the bytes of each do not fit into those that are free."""
    return max(1, min(LARGEST_STEP, int(SPARE * free) // max(1, each)))
