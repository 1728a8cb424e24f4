"""Stored keys and values in one byte each: keys scaled by groups of tokens in each channel, values by token.

Keys have channels that are large in every token; values have tokens that are large in every channel (KIVI,
https://arxiv.org/abs/2402.02750). So one scale fits along these directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEY_GROUP = 64  # tokens that share the scale of a channel
LARGEST = 127


@dataclass(frozen=True)
class Compressed:
    """numbers: int8 [K, n, D]; scale: float32, [K, groups, D] for keys and [K, n, 1] for values."""

    numbers: Tensor
    scale: Tensor


def compress(x: Tensor, *, keys: bool) -> Compressed:
    """Keys or values [K, n, D] in one byte each."""
    heads, count, dim = x.shape
    if not keys:
        scale = x.float().abs().amax(2, keepdim=True).clamp_min(1e-12) / LARGEST
        return Compressed((x.float() / scale).round().to(torch.int8).contiguous(), scale)
    groups = -(-count // KEY_GROUP)
    filled = x.new_zeros(heads, groups * KEY_GROUP, dim, dtype=torch.float32)
    filled[:, :count] = x
    scale = filled.view(heads, groups, KEY_GROUP, dim).abs().amax(2).clamp_min(1e-12) / LARGEST
    numbers = (x.float() / _by_token(scale, count)).round().to(torch.int8).contiguous()
    return Compressed(numbers, scale)


def decompress(stored: Compressed, dtype: torch.dtype) -> Tensor:
    """The input of `compress`, rounded: [K, n, D]."""
    count = stored.numbers.shape[1]
    scale = stored.scale if stored.scale.shape[2] == 1 else _by_token(stored.scale, count)
    return (stored.numbers * scale).to(dtype)


def _by_token(scale: Tensor, count: int) -> Tensor:
    return scale.repeat_interleave(KEY_GROUP, 1)[:, :count]
