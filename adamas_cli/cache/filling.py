"""Numbers of the host for a device, which the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def fill(place: Tensor, numbers: Tensor) -> None:
    """Changes: the place gets these numbers of the host. A copy from memory that is not pinned would wait
    for all that a GPU was told before.
    """
    if place.is_cuda:
        numbers = numbers.pin_memory()
    place.copy_(numbers, non_blocking=True)


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """These numbers of the host on a device."""
    if device.type == "cpu":
        return numbers
    place = torch.empty(numbers.shape, dtype=numbers.dtype, device=device)
    fill(place, numbers)
    return place
