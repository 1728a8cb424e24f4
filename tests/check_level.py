"""Checks products and unpacked rows of the named types, and other code that depends on the level, at the
level of ADAMAS_CPU; prints what the libraries were told.
"""

from __future__ import annotations

import hashlib
import json
import sys

from adamas_kernels.cpu.features import FEATURES  # before torch: it tells torch of the level

import numba  # isort: skip
import numpy as np
import torch
from adamas_kernels.blocks import unpack
from adamas_kernels.cpu.formats import FORMATS
from adamas_kernels.cpu.lanes import LANES, compress, load, splat, store
from adamas_kernels.cpu.linear import multiply_codes, multiply_vector, unpack_rows
from adamas_kernels.cpu.product import available_forms, dot4
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.strips import multiplies
from block_weights import assert_product, some_weight

# With minimums and without, with a scale for 32 codes and for 16; and rows that fill no groups.
STRIPS, ROWS = ("Q4_K", "Q5_0", "Q6_K"), 11


def check(runner: Runner, kind: str) -> str:
    """The digest of products' bits. Raises AssertionError if a product or a number is wrong."""
    columns = 512 if FORMATS[kind].numbers == 256 else 544  # whole blocks, also one by one
    packed = some_weight(kind, LANES + 5, columns)
    weight, x = unpack(packed), torch.randn(columns, generator=torch.Generator().manual_seed(1))
    found = multiply_vector(runner, packed, x, None)
    assert_product(found, packed, x)
    numbers = torch.full(weight.shape, torch.nan)
    unpack_rows(runner, packed, numbers)
    torch.testing.assert_close(numbers, weight, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))
    bits = found.numpy().tobytes()
    if kind in STRIPS and multiplies(kind):
        rows = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(2))
        several = multiply_codes(runner, packed, rows, None)
        for row, out in zip(rows, several, strict=True):
            assert_product(out, packed, row)
        bits += several.numpy().tobytes()
    return hashlib.sha256(bits).hexdigest()


def check_lanes() -> None:
    """Raises AssertionError if a product of bytes or a compressed vector is wrong."""
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (2, LANES)).astype(np.int32)
    words[0] &= 0x03030303

    @numba.njit
    def multiply(form, words, sums):
        store(sums, 0, dot4(form, splat(5), load(words, 0), load(words, LANES)))

    @numba.njit
    def move(words, front):
        store(front, 0, compress(load(words, LANES), load(words, LANES) > splat(0)))

    expected = 5 + (words.view(np.int8).reshape(2, LANES, 4).astype(np.int32)).prod(0).sum(-1)
    for form in available_forms():
        sums = np.zeros(LANES, np.int32)
        multiply(form, words.ravel(), sums)
        assert np.array_equal(sums, expected), form
    front, kept = np.zeros(LANES, np.int32), words[1][words[1] > 0]
    move(words.ravel(), front)
    assert np.array_equal(front[: len(kept)], kept)


if __name__ == "__main__":
    runner = Runner()
    bits = {kind: check(runner, kind) for kind in sys.argv[1:]}
    check_lanes()
    told = {
        "features": sorted(FEATURES),
        "forms": [type(form).__name__ for form in available_forms()],
        "bits": bits,
        "torch": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(told))
