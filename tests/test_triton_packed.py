"""Steps over packed rows in Triton, against plain torch and float64: in the interpreter here, natively with
`-m gpu` on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from adamas_kernels.contract import LayerCache, SparseSettings
from adamas_kernels.hot import ALIGNMENT, LEAST_STEPS, MOST_STEPS, HotRows, side_by_side
from adamas_kernels.packed import block_of, centre_of, hadamard, numbers, pack_like, read, row_size
from adamas_kernels.torch.backend import TorchBackend
from adamas_kernels.triton.backend import TritonBackend
from layer_caches import (
    assert_no_worse,
    assert_same_contents,
    double_attention,
    double_step,
    make_cache,
    poisoned_memory,
    step,
)

from adamas_cli.cache.hosted import HostRows
from adamas_cli.models.shape import COPIED_STEPS, MOST_COPIED_STEPS, ROW_ALIGNMENT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMATS = {"int8": (torch.int8, torch.int8), "int4": (torch.int8, torch.uint8)}
HEADS, KV_HEADS = 2, 1

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.fixture(autouse=True)
def _on_the_device():
    torch.manual_seed(0)
    with DEVICE:
        yield


def packed(cache: LayerCache, formats, length: int) -> LayerCache:
    """The cache with its rows packed, in the order of a cache on a GPU."""
    seen, centre = slice(0, length), centre_of(cache.keys[:, :, :length] + 3)  # as of keys with a bias
    rows = []
    for plain, kind, its in zip((cache.keys, cache.values), formats, (centre, None), strict=True):
        batch, heads, size, dim = plain.shape
        new = torch.full((size, batch, heads, row_size(dim, kind)), 99, dtype=kind).permute(1, 2, 0, 3)
        new[:, :, seen] = pack_like(new, plain[:, :, seen], its)
        rows.append(new)
    return replace(
        cache, keys=rows[0], values=rows[1], centre=centre, value_sum=numbers(rows[1][:, :, seen]).sum(2)
    )


def twin(cache: LayerCache) -> LayerCache:
    def copy(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)

    names = ("keys", "values", "codes", "scales", "value_sum", "length")
    return replace(cache, **{name: copy(getattr(cache, name)) for name in names})


def hosted(cache: LayerCache) -> LayerCache:
    """The cache with its rows as they lie in host memory."""
    rows = HostRows([cache.keys, cache.values], cache.capacity)
    parts = rows.parts(torch.full_like(rows.whole_seen, 99, device=DEVICE))
    for part, its in zip(parts, (cache.keys, cache.values), strict=True):
        part.copy_(its)
    return replace(cache, keys=parts[0], values=parts[1])


def new_tokens(new: int, dim: int, dtype=torch.float32):
    return [
        torch.randn(1, new, count, dim).to(dtype).transpose(1, 2) for count in (HEADS, KV_HEADS, KV_HEADS)
    ]


@pytest.mark.parametrize(
    ("kept", "dim", "new", "settings", "copies"),
    [
        ("int8", 64, 1, SparseSettings(budget=24), False),
        ("int4", 64, 2, SparseSettings(budget=24), False),
        ("int4", 64, 1, SparseSettings(budget=24, error=2.0**-9), False),
        ("int8", 64, 1, SparseSettings(budget=24), True),
        ("int4", 32, 1, SparseSettings(budget=24), True),
        ("int8", 64, 2, SparseSettings(budget=24), True),
        ("int8", 64, 1, SparseSettings(budget=24, error=2.0**-9), True),
    ],
    ids=["one", "several", "error", "copies", "narrow copies", "several, copies", "error, copies"],
)
def test_sparse_steps(kept, dim, new, settings, copies):
    length = 100
    cache = packed(make_cache(1, KV_HEADS, dim, length, length + 8, settings), FORMATS[kept], length)
    other, tokens = twin(cache), new_tokens(new, dim)
    if copies:
        chosen = HEADS // KV_HEADS * new * settings.budget
        other = hosted(other)
        other.hot = HotRows.beside(other.keys, other.values, DEVICE, other.capacity, chosen)
    plain = step(TorchBackend(), cache, *tokens, settings, dim**-0.5)
    truth = double_step(tokens[0], cache, dim**-0.5, settings)
    with poisoned_memory():
        found = step(TritonBackend(), other, *tokens, settings, dim**-0.5)
    assert_same_contents(other, cache)
    if settings.error is not None:  # scores of turned queries round otherwise: another token may reach it
        torch.testing.assert_close(found[0], plain[0], rtol=0, atol=2e-3)
        return
    assert torch.equal(found[2][:, 0], plain[2][:, 0])
    for results in zip(found[:2], plain[:2], truth, strict=True):
        assert_no_worse(*results)


@pytest.mark.parametrize("kept", FORMATS)
@pytest.mark.parametrize(("dim", "new", "dtype"), [(64, 1, torch.float32), (96, 3, torch.float16)])
def test_full_steps(kept, dim, new, dtype):
    length = 150
    settings = SparseSettings()
    cache = packed(make_cache(1, KV_HEADS, dim, length, length + 8, settings), FORMATS[kept], length)
    other = twin(cache)
    q, k, v = new_tokens(new, dim, dtype)
    plain = TorchBackend().dense_step(q, k, v, cache, dim**-0.5)
    with poisoned_memory():
        found = TritonBackend().dense_step(q, k, v, other, dim**-0.5)
    seen = slice(0, length + new)
    assert torch.equal(other.keys[:, :, seen], cache.keys[:, :, seen])
    assert torch.equal(other.values[:, :, seen], cache.values[:, :, seen])
    torch.testing.assert_close(other.value_sum, cache.value_sum, rtol=1e-5, atol=1e-4)
    keys = read(cache.keys[:, :, seen], torch.float32, cache.centre)
    truth = double_attention(q, keys, read(cache.values[:, :, seen], torch.float32), dim**-0.5)
    for one, other_one, exact in zip(found, plain, truth, strict=True):
        assert_no_worse(one, other_one, exact)


def test_a_row_is_copied_once_and_read_from_its_copy():
    length, dim, settings = 70, 64, SparseSettings(budget=8)
    cache = make_cache(1, KV_HEADS, dim, length, length + 8, settings)
    other, backend, tokens = hosted(twin(cache)), TritonBackend(), new_tokens(1, dim)
    other.hot = hot = HotRows.beside(other.keys, other.values, DEVICE, 78, HEADS // KV_HEADS * 8)
    sums = cache.value_sum.clone()

    def check(expected):
        found = step(backend, other, *tokens, settings, dim**-0.5)
        assert torch.equal(found[2][:, 0], expected[2][:, 0])
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-4, atol=1e-5)
        assert not hot.taken.any()
        assert (hot.place != -1).all()
        return int(hot.begin.sum())

    expected = step(TorchBackend(), cache, *tokens, settings, dim**-0.5)
    first = check(expected)
    assert 0 < first <= int((hot.token >= 0).sum())
    other.length -= 1
    other.value_sum.copy_(sums)
    whole = other.values.clone()
    other.values[:, :, :length] = torch.nan  # the new token is written again
    assert check(expected) == first
    other.values.copy_(whole)
    tokens = new_tokens(1, dim)
    assert first < check(step(TorchBackend(), cache, *tokens, settings, dim**-0.5)) < 2 * first
    hot.forget()
    assert (hot.token == -1).all()
    assert (LEAST_STEPS, MOST_STEPS) == (COPIED_STEPS, MOST_COPIED_STEPS)
    assert ALIGNMENT == ROW_ALIGNMENT


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize(("dim", "tokens", "centred"), [(128, 150, True), (64, 131, False), (96, 70, True)])
def test_rows_are_read_as_numbers(kind, dim, tokens, centred):
    plain = torch.randn(2, 3, tokens, dim) + 3
    centre = centre_of(plain) if centred else None
    whole = torch.full((tokens + 5, 2, 3, row_size(dim, kind)), 99, dtype=kind).permute(1, 2, 0, 3)
    rows = whole[:, :, :tokens]
    rows.copy_(pack_like(rows, plain, centre))
    shift = 0 if centre is None else centre.unsqueeze(2).double()
    basis = torch.block_diag(*[hadamard(block_of(dim), rows.device).double()] * (dim // block_of(dim)))
    exact = (numbers(rows).double() + shift) @ basis
    # The interpreter cuts numbers off for bfloat16 instead of rounding them.
    for dtype in (torch.float32, torch.float16, *[torch.bfloat16] * (DEVICE.type == "cuda")):
        with poisoned_memory():
            found = TritonBackend().read_rows(rows, dtype, centre)
        assert found.dtype == dtype
        assert_no_worse(found, read(rows, dtype, centre), exact)


def test_rows_far_apart_are_read():
    """Their places need more than 32 bits, as those of a few million tokens do."""
    dim, step = 64, 3 << 29
    width = row_size(dim, torch.int8)
    memory = torch.empty(2 * step + width, dtype=torch.int8)  # mostly untouched
    rows = memory.as_strided((1, 1, 3, width), (step, width, step, 1))
    rows.copy_(pack_like(rows, torch.randn(1, 1, 3, dim)))
    found = TritonBackend().read_rows(rows, torch.float32)
    assert torch.equal(found, TritonBackend().read_rows(rows.clone(), torch.float32))


@pytest.mark.parametrize(
    ("kinds", "dim", "width"),
    [
        ((torch.int8, torch.int8), 128, 288),
        ((torch.int8, torch.uint8), 128, 224),
        ((torch.int8, torch.int8), 32, 96),
        ((torch.bfloat16, torch.bfloat16), 64, 256),
    ],
    ids=str,
)
def test_a_token_has_one_row(kinds, dim, width):
    likes = [torch.empty(1, 3, 0, row_size(dim, kind), dtype=kind) for kind in kinds]
    rows = HostRows(likes, 50)
    whole = torch.arange(50 * 3 * width).to(torch.uint8).view(50, 1, 3, width)
    keys, values = rows.parts(whole)
    assert rows.whole_seen.shape == whole.shape
    assert [x.dtype for x in (keys, values)] == list(kinds)
    found = side_by_side(keys, values)
    assert torch.equal(found, whole.permute(1, 2, 0, 3))
    assert found.data_ptr() == whole.data_ptr()
    with pytest.raises(ValueError, match="not side by side"):
        side_by_side(values, keys)
    with pytest.raises(ValueError, match="not side by side"):
        side_by_side(keys, values.contiguous())
