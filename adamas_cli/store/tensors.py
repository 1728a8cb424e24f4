"""Tensors in the form of blocks: names of number formats, and memory as buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def lies_in_pieces(tensor: Tensor) -> bool:
    """Whether `pieces` serves a tensor."""
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def pieces(tensor: Tensor) -> list[Any]:
    """The memory of a CPU tensor as buffers for reading or writing: one for a contiguous tensor, else one for
    each head's part [n, D] of [K, n, D]. Raises RuntimeError if a part is not contiguous.
    """
    if not tensor.numel():
        return []
    parts = [tensor] if tensor.is_contiguous() else list(tensor)
    return [part.view(-1).view(torch.uint8).numpy() for part in parts]
