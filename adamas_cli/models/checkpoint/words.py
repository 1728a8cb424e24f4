"""Integers of few bits in 32-bit words, from the lowest bits on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def integers(words: Tensor, bits: int) -> Tensor:
    """int32 [rows, words] -> the integers of this many bits in each row, uint8 [rows, words * 32 / bits]; an
    integer may cross from one word to the next.
    """
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        packed = words.contiguous().view(torch.uint8)
        return torch.stack([packed >> shift & mask for shift in range(0, 8, bits)], -1).flatten(1)
    words = F.pad(words, (0, -words.shape[1] % bits)).unflatten(1, (-1, bits))  # 32 integers in each
    wide = F.pad(words.long() & 0xFFFFFFFF, (0, 1))
    pairs = wide[..., :-1] | wide[..., 1:] << 32
    starts = range(0, 32 * bits, bits)
    return torch.stack([pairs[..., at // 32] >> at % 32 & mask for at in starts], -1).byte().flatten(1)
