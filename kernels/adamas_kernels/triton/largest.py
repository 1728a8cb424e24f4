"""The place of the largest of many numbers: the greedy token of a step, found by many programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adamas_kernels.triton.launch import next_power

BLOCK = 1024  # numbers of a program


@triton.jit
def largest_kernel(x_ptr, value_ptr, place_ptr, count, BLOCK: tl.constexpr):
    """Program (BLOCK numbers): the largest of them, and the first place where it is; NaN is infinite."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < count, other=-float("inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    value = tl.max(x, axis=0)
    tl.store(value_ptr + tl.program_id(0), value)
    tl.store(place_ptr + tl.program_id(0), tl.min(tl.where(x == value, at, count - 1), axis=0))


@triton.jit
def first_kernel(value_ptr, place_ptr, out_ptr, largest_ptr, parts, count, WIDTH: tl.constexpr):
    """The first place of the largest of all parts, and that."""
    part = tl.arange(0, WIDTH)
    there = part < parts
    value = tl.load(value_ptr + part, mask=there, other=-float("inf"))
    place = tl.load(place_ptr + part, mask=there, other=0)
    found = tl.max(value, axis=0)
    tl.store(out_ptr, tl.min(tl.where(there & (value == found), place, count - 1), axis=0))
    tl.store(largest_ptr, found)


def largest(x: Tensor, out: Tensor, weight: Tensor) -> None:
    """Write the first place of the largest of x [n] to out, int64 [1], and that number to weight, float32
    [1]; NaN counts as infinite.
    """
    count = x.numel()
    parts = triton.cdiv(count, BLOCK)
    value = torch.empty(parts, dtype=torch.float32, device=x.device)
    place = torch.empty(parts, dtype=torch.int32, device=x.device)
    largest_kernel[(parts,)](x, value, place, count, BLOCK=BLOCK)
    first_kernel[(1,)](value, place, out, weight, parts, count, WIDTH=next_power(parts))
