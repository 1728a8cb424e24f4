"""The specification of keys and values in 8 or 4 bits, in plain torch. Rows of bytes include their own
scales, so buffers, placements and stores treat them like rows of plain numbers.

A row is one head's key or value of one token: D codes, and a float16 scale for each GROUP of them. It is
rotated first, so that a large coordinate does not take the bits of the others (QuaRot, arXiv 2404.00456,
section 3). Keys are then taken relative to a centre shared by all keys of a head: in models whose keys have a
bias, the bias causes most of the loss (docs/accuracy.md).

The dtype of the rows is the format: int8 for 8-bit codes, uint8 for 4-bit codes, with the first half of a
group in the low bits of its bytes and the second half in the high bits. Rows of other dtypes are plain
numbers.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from adamas_kernels.reference import transformed

GROUP = 32  # codes that share a scale
SCALE_BYTES = 2
BITS = {torch.int8: 8, torch.uint8: 4}
LARGEST = {torch.int8: 127, torch.uint8: 7}
LEAST_SCALE = 2.0**-24  # the smallest float16 above zero, for rows of zeros
ZERO_CODE = 8  # the 4-bit code of zero
READ_TOKENS = 4096  # tokens held in float32 at a time


def is_packed(dtype: torch.dtype) -> bool:
    """Whether rows of this dtype are packed."""
    return dtype in BITS


def fits(dim: int) -> bool:
    """Whether heads of this size can be packed: they must be whole groups."""
    return dim % GROUP == 0


def row_size(dim: int, dtype: torch.dtype) -> int:
    """Elements of a row of `dim` numbers."""
    if not is_packed(dtype):
        return dim
    return dim * BITS[dtype] // 8 + dim // GROUP * SCALE_BYTES


def dim_of(rows: Tensor) -> int:
    """D, the numbers in each of these rows, [..., R]."""
    if not is_packed(rows.dtype):
        return rows.shape[-1]
    group = GROUP * BITS[rows.dtype] // 8 + SCALE_BYTES
    return rows.shape[-1] // group * GROUP


def block_of(dim: int) -> int:
    """Coordinates that are rotated together: the largest power of two that divides the head size."""
    return dim & -dim


def rotated(x: Tensor) -> Tensor:
    """The rows of x [..., D], Hadamard-transformed block by block: float32. Twice gives x again."""
    return transformed(x.float(), block_of(x.shape[-1]))


def pack(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pack rows of numbers, float32 [..., D], without rotating them: [..., R]."""
    groups = x.unflatten(-1, (-1, GROUP))
    scale = (groups.abs().amax(-1, keepdim=True) / LARGEST[dtype]).clamp_min(LEAST_SCALE).half()
    codes = (groups / scale.float()).round().clamp(-LARGEST[dtype], LARGEST[dtype])
    if dtype == torch.int8:
        packed = codes.to(torch.int8).flatten(-2)
    else:
        low, high = (codes + ZERO_CODE).to(torch.uint8).unflatten(-1, (2, -1)).unbind(-2)
        packed = (low | high << 4).flatten(-2)
    return torch.cat([packed, scale.squeeze(-1).view(dtype)], -1)


def numbers(rows: Tensor) -> Tensor:
    """The stored numbers of rows [..., R], still rotated and relative to the centre: float32 [..., D]."""
    if not is_packed(rows.dtype):
        return rows.float()
    dim = dim_of(rows)
    codes, scales = rows.split([rows.shape[-1] - dim // GROUP * SCALE_BYTES, dim // GROUP * SCALE_BYTES], -1)
    if rows.dtype == torch.uint8:
        low, high = (codes & 15).unflatten(-1, (-1, GROUP // 2)), (codes >> 4).unflatten(-1, (-1, GROUP // 2))
        codes = torch.cat([low, high], -1).flatten(-2).to(torch.int8) - ZERO_CODE
    scale = scales.contiguous().view(torch.float16).float().unsqueeze(-1)
    return (codes.unflatten(-1, (-1, GROUP)) * scale).flatten(-2)


def pack_like(rows: Tensor, x: Tensor, centre: Tensor | None = None) -> Tensor:
    """Numbers x [B, K, n, D] as rows in the format of `rows`. centre: float32 [B, K, D], for packed keys."""
    if not is_packed(rows.dtype):
        return x.to(rows.dtype)
    turned = rotated(x)
    return pack(turned if centre is None else turned - centre.unsqueeze(2), rows.dtype)


def write(rows: Tensor, x: Tensor, centre: Tensor | None = None) -> None:
    """Write numbers x [B, K, n, D] to rows [B, K, n, R], see `pack_like`."""
    rows.copy_(pack_like(rows, x, centre))


def kept_sum(rows: Tensor, x: Tensor) -> Tensor:
    """What values x [B, K, n, D], written to these rows, add to a layer's value_sum: float32 [B, K, D]."""
    return (x if rows.dtype == x.dtype else numbers(rows)).sum(2, dtype=torch.float32)


def read(rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
    """The (rounded) numbers that were written to rows [B, K, n, R]: [B, K, n, D] in this dtype. Returns rows
    themselves if they are already that.
    """
    if not is_packed(rows.dtype):
        return rows.to(dtype)
    dim = dim_of(rows)
    out = rows.new_empty(*rows.shape[:3], dim, dtype=dtype)
    basis = hadamard(block_of(dim), rows.device)
    for start in range(0, rows.shape[2], READ_TOKENS):
        part = slice(start, start + READ_TOKENS)
        found = numbers(rows[:, :, part])
        found = found if centre is None else found + centre.unsqueeze(2)
        out[:, :, part] = (found.unflatten(-1, (-1, len(basis))) @ basis).flatten(-2)
    return out


@cache
def hadamard(block: int, device: torch.device) -> Tensor:
    """The matrix of `rotated`: float32 [block, block]."""
    return rotated(torch.eye(block)).to(device)


def centre_of(keys: Tensor) -> Tensor:
    """The centre of keys [B, K, n, D]: float32 [B, K, D]."""
    return rotated(keys.float().mean(2))
