"""The number of answers that decode together."""

from __future__ import annotations

from adamas_kernels.contract import LARGEST_STEP

SPARE = 0.5  # share of the free memory that may be used


def answers_at_once(each: int, free: int) -> int:
    """As many as one step supports, or fewer if the bytes of each do not fit into the free memory."""
    return max(1, min(LARGEST_STEP, int(SPARE * free) // max(1, each)))
