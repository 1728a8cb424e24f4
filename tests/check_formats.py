"""Checks products and unpacked rows of every type with the features that numba was told of."""

from __future__ import annotations

import torch
from adamas_kernels.blocks import unpack
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.linear import multiply_vector, unpack_rows
from adamas_kernels.cpu.runner import Runner
from block_weights import some_weight


def check(runner: Runner, kind: str) -> None:
    """Raises AssertionError where a product or a number is wrong."""
    packed = some_weight(kind, 5, 512)
    weight, x = unpack(packed), torch.randn(512)
    found = multiply_vector(runner, packed, x, None)
    scale = weight.abs().double() @ x.abs().double()
    assert ((found - weight.double() @ x.double()).abs() <= 1e-6 * scale + 1e-6).all(), kind
    numbers = torch.full(weight.shape, torch.nan)
    unpack_rows(runner, packed, numbers)
    torch.testing.assert_close(numbers, weight, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))


if __name__ == "__main__":
    runner = Runner()
    for kind in FORMATS:
        check(runner, kind)
        print(kind)
