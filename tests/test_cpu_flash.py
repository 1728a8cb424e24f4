"""Prefill attention in compiled blocks, against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adamas_kernels.contract import Facts
from adamas_kernels.cpu import prefill as flash
from adamas_kernels.cpu.build import njit
from adamas_kernels.cpu.floats import Bfloat16, exp2
from adamas_kernels.cpu.lanes import LANES, load, store
from adamas_kernels.cpu.prefill import BLOCK, BLOCK_ROWS, RANGE, flash_attention
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.tile import Singles, form_of, is_short
from adamas_kernels.dispatch import serving
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.prefill import causal_attention
from torch import Tensor

ROUNDS = is_short(form_of(Bfloat16(), Bfloat16()))  # whether bfloat16 is multiplied as integers of 16 bits


def exact(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Causal attention in float64, with the log-sum-exp."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, 1).double() for x in (keys, values))
    new, size = queries.shape[2], keys.shape[2]
    seen = torch.ones(new, size, dtype=torch.bool).tril(size - new)
    scores = queries.double() @ keys.transpose(-1, -2) * scaling
    scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def serves(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the compiled blocks serve these tensors."""
    return flash.obstacle(Facts.of(queries, keys, values)) is None


def chunk_attention(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """The prefill of the backend that serves these tensors."""
    facts = Facts.of(queries, keys, values)
    return serving("prefill", facts).prefill(queries, keys, values, scaling)[0]


def poisoned(heads: int, size: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[1, heads, size, dim], a view into a buffer that is NaN elsewhere."""
    buffer = torch.full((1, heads, size + 70, dim), torch.nan, dtype=dtype)
    buffer[:, :, :size] = torch.randn(1, heads, size, dim)
    return buffer[:, :, :size]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dim_v"), [(2, 1, 64, 64), (3, 3, 128, 128), (2, 2, 80, 80), (4, 1, 32, 48)]
)
@pytest.mark.parametrize(
    ("new", "size"),
    [
        (2, 2),
        (7, 7),
        (BLOCK_ROWS, BLOCK_ROWS),
        (BLOCK_ROWS + 1, BLOCK - 1),
        (5, BLOCK + 1),
        (130, RANGE),
        (100, RANGE + 1),
        (61, 2 * RANGE + 77),
    ],
)
def test_equal_to_the_definition(heads, kv_heads, dim, dim_v, new, size):
    queries, keys = torch.randn(1, new, heads, dim).bfloat16().transpose(1, 2), poisoned(kv_heads, size, dim)
    values = poisoned(kv_heads, size, dim_v)
    assert serves(queries, keys, values)
    found, lse = flash_attention(Runner(), queries, keys, values, dim**-0.5)
    expected, expected_lse = exact(queries, keys, values, dim**-0.5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-3 if ROUNDS else 1e-4)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 4e-3 * expected.norm()
    assert (found - expected).abs().max() <= 0.02


@pytest.mark.parametrize("softmax", [PLAIN, Softmax(window=100, softcap=5.0)], ids=["plain", "a window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "dim_v", "new", "size"), [(64, 64, 130, RANGE + 77), (80, 48, 61, BLOCK - 1)]
)
def test_products_of_float32_are_as_exact_as_torch_in_float32(
    monkeypatch, softmax, dtype, dim, dim_v, new, size
):
    """Also for 16-bit numbers, on CPUs without a product of pairs."""
    monkeypatch.setattr(flash, "form_of", lambda kind, kept: Singles())
    queries = torch.randn(1, new, 4, dim).to(dtype).transpose(1, 2)
    keys, values = poisoned(2, size, dim, dtype), poisoned(2, size, dim_v, dtype)
    assert serves(queries, keys, values)
    found = flash_attention(Runner(), queries, keys, values, dim**-0.5, softmax)
    exact, theirs = (
        causal_attention(*(x.to(high) for x in (queries, keys, values)), dim**-0.5, softmax)
        for high in (torch.float64, torch.float32)
    )
    rounding = torch.finfo(dtype).eps / 2 * exact[0].abs() if dtype != torch.float32 else 0.0
    for mine, true, other, more in zip(found, exact, theirs, (rounding, 0.0), strict=True):
        assert ((mine - true).abs() <= 2 * (other - true).abs().max() + 1e-6 + more).all()


@pytest.mark.parametrize("factor", [0.0, 1e-3, 30.0])
def test_flat_and_sharp_scores(factor):
    """With equal scores the output is the mean; with scores far apart, exp neither overflows nor vanishes.

    Integers of 16 bits are off by 0.02 in scores of some hundreds.
    """
    queries, keys, values = (torch.randn(1, 2, 700, 64).bfloat16() for _ in range(3))
    found, _ = flash_attention(Runner(), queries[:, :, -90:], keys, values, factor)
    expected, _ = exact(queries[:, :, -90:], keys, values, factor)
    assert (found - expected).abs().max() <= (0.1 if ROUNDS and factor == 30 else 0.04)


def test_powers_of_two():
    """As exact as float32 allows, and exactly zero for hidden scores."""

    @njit
    def fill(x, found):
        for i in range(0, len(x), LANES):
            store(found, i, exp2(load(x, i)))

    x = np.linspace(-126, 126, 1 << 20, dtype=np.float32)
    found = np.empty_like(x)
    fill(x, found)
    assert np.abs(found / np.exp2(x.astype(np.float64)) - 1).max() < 2e-7
    edges = np.array([0, 1, -1, -127, -128, -1e30, -np.inf, np.nan] * 2, np.float32)
    fill(edges, found)
    assert found[:8].tolist() == [1, 2, 0.5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_token_sees_the_future(dtype):
    queries, keys, values = (torch.randn(1, 2, 300, 64).to(dtype) for _ in range(3))
    before, _ = flash_attention(Runner(), queries, keys, values, 0.125)
    keys[:, :, 200:], values[:, :, 200:] = 50, -50
    after, _ = flash_attention(Runner(), queries, keys, values, 0.125)
    assert torch.equal(before[:, :, :200], after[:, :, :200])
    assert not torch.equal(before[:, :, 200:], after[:, :, 200:])


def test_the_prefill_takes_it_and_gives_the_same_as_torch(monkeypatch):
    queries, keys, values = (torch.randn(1, h, n, 64).bfloat16() for h, n in ((4, 33), (2, 500), (2, 500)))
    calls = []
    original = flash.flash_attention
    monkeypatch.setattr(flash, "flash_attention", lambda *args: calls.append(args) or original(*args))
    found = chunk_attention(queries, keys, values, 0.125)
    assert len(calls) == 1
    torch.testing.assert_close(causal_attention(queries, keys, values, 0.125)[0], found, rtol=0.02, atol=0.01)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("dim", "dim_v", "new", "size"),
    [
        (64, 64, 130, RANGE + 77),
        (128, 128, 61, BLOCK - 1),
        (80, 48, 33, 300),
        (256, 16, 7, 7),
        (34, 32, 2, 65),
    ],
)
@pytest.mark.parametrize("softmax", [PLAIN, Softmax(window=100, softcap=5.0)], ids=["plain", "a window"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rows_in_16_bits_meet_float32_queries(dim, dim_v, new, size, softmax, dtype):
    """As integers where a CPU multiplies them. Rounded in bfloat16, this would be off by 0.004."""
    queries = 3 * torch.randn(1, new, 4, dim).transpose(1, 2)
    keys, values = poisoned(2, size, dim, dtype), poisoned(2, size, dim_v, dtype)
    found, lse = flash_attention(Runner(), queries, keys, values, dim**-0.5, softmax)
    assert found.dtype == torch.float32
    wide = (x.double() for x in (queries, keys, values))
    expected, expected_lse = causal_attention(*wide, dim**-0.5, softmax)
    assert relative(found, expected) < 6e-4
    assert (lse - expected_lse).abs().max() < 2e-3


@pytest.mark.parametrize("size", [1, 64, 65, 700])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_the_largest_sums_do_not_overflow(dim, size):
    """Rows whose products all have one sign: equal numbers, one number, and signs that alternate."""
    rows = torch.ones(3, dim)
    rows[1, 1:] = 0
    rows[2, ::2] = -1
    for row in rows:
        keys = (1000 * row).half().expand(1, 1, size, dim).contiguous()
        values = torch.full((1, 1, size, dim), 60_000.0, dtype=torch.float16)
        found, lse = flash_attention(Runner(), keys.float(), keys, values, 1e-6)
        expected, expected_lse = exact(keys.float(), keys, values, 1e-6)
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=0)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=2e-4, atol=1e-4)


def test_many_small_weights_count_beside_a_large_one():
    """A first token with nearly all weight and hardly a value, and values of very different sizes."""
    size = 2000
    queries, keys = torch.zeros(1, 1, 20, 64), 0.1 * torch.randn(1, 1, size, 64)
    queries[..., 0], keys[..., 0] = 8.0, 0.0
    keys[0, 0, 0, 0] = 12.0  # e^12 against e^0
    values = torch.randn(1, 1, size, 64) * 10 ** torch.empty(size, 1).uniform_(-3, 3)
    values[0, 0, 0] = 1e-3
    keys, values = keys.half(), values.half()
    found, _ = flash_attention(Runner(), queries, keys, values, 0.125)
    expected, _ = exact(queries, keys, values, 0.125)
    assert relative(found, expected) < 1e-3


def test_rows_of_zeros():
    queries, keys = torch.randn(1, 2, 70, 64), torch.zeros(1, 1, 70, 64, dtype=torch.float16)
    found, lse = flash_attention(Runner(), queries, keys, keys, 1.0)
    assert found.abs().max() == 0
    torch.testing.assert_close(lse[0, 0], torch.arange(1, 71).log(), rtol=1e-5, atol=1e-5)


def test_what_it_does_not_serve():
    queries = torch.randn(1, 4, 8, 64).bfloat16()
    assert serves(queries.float(), queries, queries)
    assert not serves(queries, queries, queries.half())
    assert not serves(*[queries.double()] * 3)
    assert not serves(queries, queries, torch.randn(1, 4, 8, 40).bfloat16())
    assert not serves(queries.transpose(2, 3), queries, queries)
