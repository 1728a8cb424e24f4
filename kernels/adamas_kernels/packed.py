"""The specification of keys and values in 8 or 4 bits, in plain torch: rows of bytes with scales of their
own, which buffers, placements and stores take as rows of any other numbers.

A row is one head's key or value of one token: D codes, and a float16 scale for each GROUP of them. What is in
it is rotated first, so that a large coordinate does not take the bits of the others (QuaRot, arXiv
2404.00456, section 3), and keys are then taken relative to a centre that all keys of a head share: models
whose keys have a bias lose most of what they lose through it (docs/accuracy.md).

A format is the dtype of its rows: int8 for codes of 8 bits, uint8 for codes of 4, where the first half of a
group is in the low bits of its bytes and the second half in the high ones. Rows of other dtypes are numbers.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GROUP = 32  # codes with a scale of their own
SCALE_BYTES = 2
BITS = {torch.int8: 8, torch.uint8: 4}
LARGEST = {torch.int8: 127, torch.uint8: 7}
LEAST_SCALE = 2.0**-24  # the smallest float16 above zero: rows of zeros have one, too
ZERO_CODE = 8  # of 4 bits
READ_TOKENS = 4096  # whose float32 numbers are there at a time


def is_packed(dtype: torch.dtype) -> bool:
    """Whether rows of this dtype are packed."""
    return dtype in BITS


def fits(dim: int) -> bool:
    """Whether heads of this size can be packed: they are whole groups."""
    return dim % GROUP == 0


def row_size(dim: int, dtype: torch.dtype) -> int:
    """Elements of a row of `dim` numbers."""
    if not is_packed(dtype):
        return dim
    return dim * BITS[dtype] // 8 + dim // GROUP * SCALE_BYTES


def dim_of(rows: Tensor) -> int:
    """D, the numbers of each of these rows, [..., R]."""
    if not is_packed(rows.dtype):
        return rows.shape[-1]
    group = GROUP * BITS[rows.dtype] // 8 + SCALE_BYTES
    return rows.shape[-1] // group * GROUP


def block_of(dim: int) -> int:
    """Coordinates that are rotated together: the largest power of two that divides a head."""
    return dim & -dim


def rotated(x: Tensor) -> Tensor:
    """The rows of x [..., D], block by block, in Hadamard's basis: float32. Twice gives x again.

    The fast transform, in the order of operations of `reference.rotate`.
    """
    block = block_of(x.shape[-1])
    out = x.float()
    step = 1
    while step < block:
        low, high = out.unflatten(-1, (-1, 2, step)).unbind(-2)
        out = torch.stack([low + high, low - high], -2).flatten(-3)
        step *= 2
    return out * block**-0.5


def pack(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of numbers as they are, float32 [..., D], as packed rows [..., R]."""
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
    """The numbers of rows [..., R] as they are there, rotated and relative: float32 [..., D]."""
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
    """Numbers x [B, K, n, D] as rows in the format of others. centre: float32 [B, K, D], of keys that are
    packed.
    """
    if not is_packed(rows.dtype):
        return x.to(rows.dtype)
    turned = rotated(x)
    return pack(turned if centre is None else turned - centre.unsqueeze(2), rows.dtype)


def write(rows: Tensor, x: Tensor, centre: Tensor | None = None) -> None:
    """Write numbers x [B, K, n, D] to rows [B, K, n, R], see `pack_like`."""
    rows.copy_(pack_like(rows, x, centre))


def kept_sum(rows: Tensor, x: Tensor) -> Tensor:
    """What values x [B, K, n, D], written to these rows, add to the sum of a layer's values: float32 [B, K,
    D].
    """
    return (x if rows.dtype == x.dtype else numbers(rows)).sum(2, dtype=torch.float32)


def read(rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
    """What was written to rows [B, K, n, R], rounded, [B, K, n, D] in this dtype; rows that are so
    themselves.
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
