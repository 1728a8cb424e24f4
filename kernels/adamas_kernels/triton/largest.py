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
    """Program (BLOCK numbers): the largest of them, and its first index."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=-float("inf")).to(tl.float32)
    value = tl.max(x, axis=0)
    tl.store(value_ptr + tl.program_id(0), value)
    tl.store(place_ptr + tl.program_id(0), tl.min(tl.where(x == value, at, count - 1), axis=0))


@triton.jit
def first_kernel(value_ptr, place_ptr, out_ptr, parts, count, WIDTH: tl.constexpr):
    """The first index of the largest of all parts."""
    part = tl.arange(0, WIDTH)
    there = part < parts
    value = tl.load(value_ptr + part, mask=there, other=-float("inf"))
    place = tl.load(place_ptr + part, mask=there, other=0)
    tl.store(out_ptr, tl.min(tl.where(there & (value == tl.max(value, axis=0)), place, count - 1), axis=0))


def largest(x: Tensor) -> Tensor:
    """The first index of the largest of x [n], int64 [1]."""
    count = x.numel()
    parts = triton.cdiv(count, BLOCK)
    value = torch.empty(parts, dtype=torch.float32, device=x.device)
    place = torch.empty(parts, dtype=torch.int32, device=x.device)
    out = torch.empty(1, dtype=torch.int64, device=x.device)
    largest_kernel[(parts,)](x, value, place, count, BLOCK=BLOCK)
    first_kernel[(1,)](value, place, out, parts, count, WIDTH=next_power(parts))
    return out
