"""The name of the hardware of a measurement."""

from __future__ import annotations

import torch

from adamas_cli.machine.cpu import cpu_name


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
