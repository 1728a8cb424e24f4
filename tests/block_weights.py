"""Random weights in GGUF block types, and the expected products with a vector."""

from __future__ import annotations

import numpy as np
import torch
from adamas_kernels.blocks import BlockWeight, block_size, row_bytes, unpack
from adamas_kernels.cpu.formats import FORMATS, CodeFormat
from adamas_kernels.cpu.lanes import LANES
from torch import Tensor

# Offsets of 16-bit floats in a block; all other bits are codes or integers.
FLOATS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q8_M": (0, 2),
    "F8": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ2_0": (64,),
}

NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def some_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> BlockWeight:
    """Random codes, with scales of ordinary size."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, row_bytes(kind, columns)), dtype=np.uint8)
    blocks = raw.reshape(rows, -1, block_size(kind)[1])
    for at in FLOATS.get(kind, ()):
        floats = random.normal(0, 0.01, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = floats[..., None].view(np.uint8)
    if kind == "F8":  # without the two NaN codes
        blocks[..., 2:] = np.where(blocks[..., 2:] & 127 == 127, 5, blocks[..., 2:])
    if kind == "MXFP4":
        blocks[..., 0] = random.integers(110, 125, blocks.shape[:2])
    return BlockWeight(kind, torch.from_numpy(raw), columns)


def some_weight(kind: str, rows: int, columns: int, seed: int = 0) -> BlockWeight:
    """A random weight of any type, in memory followed by NaN."""
    if kind in NUMBERS:
        numbers = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
        made = BlockWeight(kind, numbers.to(NUMBERS[kind]).view(torch.uint8), columns)
    else:
        made = some_blocks(kind, rows, columns, seed)
    memory = torch.full((made.bytes + 4096,), 255, dtype=torch.uint8)
    memory[: made.bytes] = made.data.flatten()
    return BlockWeight(kind, memory[: made.bytes].view(rows, -1), columns)


def assert_product(found: Tensor, packed: BlockWeight, x: Tensor, before: Tensor | float = 0.0) -> None:
    """The error is within float32 rounding of the product with the rounded vector, where weights are codes,
    and within half a step of each number of the product with the vector itself.
    """
    weight = unpack(packed)[:, : len(x)].double()
    used, loss, doubt = x.double(), torch.zeros_like(x).double(), torch.zeros_like(x).double()
    if isinstance(FORMATS[packed.kind], CodeFormat):
        used, loss, doubt = rounded(x)
    # A code's lowest value and a minimum are added separately: each may be as large as the largest weight.
    terms = (weight.abs() + weight.abs().amax(1, keepdim=True)) @ used.abs()
    bound = 1e-6 * terms + 1e-6
    assert ((found - weight @ used - before).abs() <= weight.abs() @ doubt + bound).all()
    assert ((found - weight @ x.double() - before).abs() <= weight.abs() @ loss + bound).all()


def rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A vector as it is rounded for weights of codes, and of each number the largest error and the doubt, all
    float64. Doubt is a whole step where a number is so close to the middle between two that float32 decides,
    with or without fused additions: one number in 15,000.
    """
    groups = torch.nn.functional.pad(x, (0, -len(x) % LANES)).view(-1, LANES)
    size = groups.abs().amax(1, keepdim=True)
    exact = groups * torch.where(size > 0, 127 / size, 0)
    steps = (size / 127).double().expand_as(groups)
    close = ((exact - exact.floor() - 0.5).abs() < 3e-5).double()
    found, half, doubt = (
        part.flatten()[: len(x)] for part in (exact.round() * steps, steps / 2, close * steps)
    )
    return found, half * (1 + 1e-5), doubt
