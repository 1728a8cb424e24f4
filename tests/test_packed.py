"""Keys and values in 8 and 4 bits: the rows, and steps on them, against plain torch."""

from __future__ import annotations

import copy

import pytest
import torch
from adamas_kernels.contract import (
    AnyCache,
    Backend,
    DenseCache,
    LayerCache,
    SparseSettings,
    allocate_codes,
    fit_codebook,
)
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.packed import centre_of, dim_of, kept_sum, numbers, pack, read, rotated, row_size, write
from adamas_kernels.reference import query_power
from adamas_kernels.torch.backend import TorchBackend
from torch import Tensor

BITS = {torch.int8: 8, torch.uint8: 4}
FORMATS = {
    "16": (torch.float16, torch.float16),
    "int8": (torch.int8, torch.int8),
    "int4": (torch.int8, torch.uint8),
}
HEADS, GROUP, DIM, TOKENS, ROOM, BUDGET = 2, 3, 64, 200, 220, 48


def test_rows_by_hand():
    row = torch.zeros(32)
    row[0], row[1], row[16], row[31] = 127.0, -64.0, 3.0, -1.0
    eight = pack(row, torch.int8)
    assert eight.shape == (34,)
    assert eight[:32].tolist() == row.tolist()  # a scale of 1
    assert eight[32:].view(torch.float16).item() == 1.0
    row[0], row[1] = 7.0, -7.0
    four = pack(row, torch.uint8)
    assert four.shape == (18,)
    assert four[:3].tolist() == [15 | 11 << 4, 1 | 8 << 4, 8 | 8 << 4]  # coordinates 0 and 16, 1 and 17, ...
    assert numbers(four).tolist() == row.tolist()


@pytest.mark.parametrize("dim", [32, 96, 128])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_what_is_read_is_near_what_was_written(dim: int, dtype: torch.dtype):
    x = torch.randn(1, 2, 9, dim) + 50 * (torch.arange(dim) == 5)  # a coordinate that is large in every key
    centre = centre_of(x)
    rows = torch.empty(1, 2, 9, row_size(dim, dtype), dtype=dtype)
    write(rows, x, centre)
    assert dim_of(rows) == dim
    step = 2.0 ** (1 - BITS[dtype])
    assert (read(rows, torch.float32, centre) - x).std() < 1.5 * step  # for a deviation of 1
    torch.testing.assert_close(rotated(rotated(x)), x, rtol=0, atol=1e-4)


def test_zeros_stay_zeros():
    for dtype in BITS:
        rows = torch.empty(1, 1, 1, row_size(DIM, dtype), dtype=dtype)
        write(rows, torch.zeros(1, 1, 1, DIM))
        assert not read(rows, torch.float32).any()


def cache_of(formats: tuple[torch.dtype, torch.dtype], *, coded: bool) -> AnyCache:
    """A layer's cache of random tokens, with biased keys."""
    random = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(1, HEADS, TOKENS, DIM, generator=random) for _ in range(2))
    keys += 4 * torch.randn(1, HEADS, 1, DIM, generator=random)
    rows = [torch.zeros(1, HEADS, ROOM, row_size(DIM, dtype), dtype=dtype) for dtype in formats]
    centre = centre_of(keys)
    write(rows[0][:, :, :TOKENS], keys, centre)
    write(rows[1][:, :, :TOKENS], values)
    total, length = kept_sum(rows[1][:, :, :TOKENS], values), torch.tensor([TOKENS], dtype=torch.int32)
    if not coded:
        return DenseCache(*rows, total, length, centre)
    queries = torch.randn(1, HEADS * GROUP, 16, DIM, generator=random)
    book = fit_codebook(keys, query_power(queries, HEADS), SparseSettings())
    codes, scales = allocate_codes(rows[0], ROOM)
    TorchBackend().encode_keys(keys, book, codes[:, :, :TOKENS], scales[:, :, :TOKENS])
    return LayerCache(*rows, codes, scales, total, book, length, centre)


def step(
    backend: Backend, cache: AnyCache, new: tuple[Tensor, ...], error: float | None
) -> tuple[Tensor, Tensor]:
    if isinstance(cache, DenseCache):
        return backend.dense_step(*new, cache, DIM**-0.5)
    return backend.decode_step(*new, cache, DIM**-0.5, SparseSettings(budget=BUDGET, error=error))


@pytest.mark.parametrize("formats", [FORMATS["int4"]], ids=["int4"])
@pytest.mark.parametrize(("coded", "error"), [(False, None), (True, None), (True, 2.0**-8)])
def test_compiled_steps_read_and_write_rows(formats, coded: bool, error: float | None):
    theirs = cache_of(formats, coded=coded)
    random = torch.Generator().manual_seed(4)
    shapes = (HEADS * GROUP, HEADS, HEADS)
    new = tuple(torch.randn(1, heads, 3, DIM, generator=random) for heads in shapes)
    mine = copy.deepcopy(theirs)
    expected = step(TorchBackend(), theirs, new, error)
    found = step(CpuBackend(), mine, new, error)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.keys, theirs.keys)  # written rows equal the specification's, bit for bit
    assert torch.equal(mine.values, theirs.values)
    torch.testing.assert_close(mine.value_sum, theirs.value_sum)
