"""Checks products and unpacked rows of every type with the features that numba was told of; prints the types,
with a digest of their products.
"""

from __future__ import annotations

import hashlib

import torch
from adamas_kernels.blocks import unpack
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.linear import multiply_codes, multiply_vector, unpack_rows
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.strips import multiplies
from block_weights import assert_product, some_weight

STRIPS = (
    "Q4_K",
    "Q5_0",
    "Q6_K",
)  # of 16 bits, how many sums of two products hold differs by the largest code


def check(runner: Runner, kind: str) -> str:
    """The digest of a product's bits. Raises AssertionError where a product or a number is wrong."""
    columns = 512 if FORMATS[kind].numbers == 256 else 544  # whole blocks, also one by one
    packed = some_weight(kind, 5, columns)
    weight, x = unpack(packed), torch.randn(columns, generator=torch.Generator().manual_seed(1))
    found = multiply_vector(runner, packed, x, None)
    assert_product(found, packed, x)
    numbers = torch.full(weight.shape, torch.nan)
    unpack_rows(runner, packed, numbers)
    torch.testing.assert_close(numbers, weight, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))
    if kind in STRIPS and multiplies(kind):
        assert_product(multiply_codes(runner, packed, x[None], None)[0], packed, x)
    return hashlib.sha256(found.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    runner = Runner()
    for kind in FORMATS:
        print(kind, check(runner, kind))
