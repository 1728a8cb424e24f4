"""The argmax of many numbers, the greedy token of a step, found by many programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.launch import next_power

BLOCK = 1024  # numbers of a program


@triton.jit
def largest_kernel(x_ptr, value_ptr, place_ptr, count, BLOCK: tl.constexpr):
    """Program (BLOCK numbers): the largest of them, and its first index; NaN counts as infinite."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=-float("inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    value = tl.max(x, axis=0)
    tl.store(value_ptr + tl.program_id(0), value)
    tl.store(place_ptr + tl.program_id(0), tl.min(tl.where(x == value, at, count - 1), axis=0))


@triton.jit
def first_kernel(value_ptr, place_ptr, token_ptr, weight_ptr, parts, count, WIDTH: tl.constexpr):
    """The largest of all parts, and its first index."""
    part = tl.arange(0, WIDTH)
    there = part < parts
    value = tl.load(value_ptr + part, mask=there, other=-float("inf"))
    place = tl.load(place_ptr + part, mask=there, other=0)
    largest = tl.max(value, axis=0)
    tl.store(token_ptr, tl.min(tl.where(there & (value == largest), place, count - 1), axis=0))
    tl.store(weight_ptr, largest)


def largest(x: Tensor, token: Tensor, weight: Tensor) -> None:
    """Write the first index of the largest of x [n] to token, int64 [1], and that number to weight, float32
    [1]; NaN counts as infinite.
    """
    count = x.numel()
    parts = triton.cdiv(count, BLOCK)
    value = torch.empty(parts, dtype=torch.float32, device=x.device)
    place = torch.empty(parts, dtype=torch.int32, device=x.device)
    largest_kernel[(parts,)](x, value, place, count, BLOCK=BLOCK)
    first_kernel[(1,)](value, place, token, weight, parts, count, WIDTH=next_power(parts))
