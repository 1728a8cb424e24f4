"""Shared by the launchers of several kernels."""

from __future__ import annotations

import os
from typing import Any

import torch

CHAINING_CAPABILITY = 9  # NVIDIA GPUs from Hopper on can start a launch before the previous one ends


def next_power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def has_ptx() -> bool:
    """Whether kernels may contain NVIDIA assembly: not on AMD, and not in Triton's interpreter."""
    return torch.version.hip is None and os.environ.get("TRITON_INTERPRET") != "1"


def chains(device: torch.device) -> bool:
    """Whether launches on this device can overlap (programmatic dependent launch)."""
    if device.type != "cuda" or not has_ptx():
        return False
    return torch.cuda.get_device_capability(device)[0] >= CHAINING_CAPABILITY


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program on this GPU can have."""
    properties: Any = torch.cuda.get_device_properties(device)  # the field is not in its stub
    return int(properties.shared_memory_per_block_optin)
