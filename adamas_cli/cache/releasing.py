"""Returning memory that a GPU may still be using."""

from __future__ import annotations

from collections.abc import Callable

import torch

_waiting: list[Callable[[], None]] = []  # calls that return memory, postponed


def release(device: torch.device, free: Callable[[], None]) -> None:
    """Call `free` once a GPU no longer uses the memory it returns. While a step is captured, which must not
    wait, the call is postponed until `release_waiting`: the garbage collector may come here at any time.
    """
    if torch.cuda.is_current_stream_capturing():
        _waiting.append(free)
        return
    torch.cuda.synchronize(device)
    free()


def release_waiting() -> None:
    """Make the postponed calls."""
    while _waiting:
        _waiting.pop()()
