"""Sequences of unequal length in a batch, against each alone, for every backend and operation."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.contract import Backend, DenseCache, Facts, LayerCache, SparseSettings
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.cpu.records import DENSE_SEGMENT, SEGMENT
from adamas_kernels.dispatch import obstacles
from adamas_kernels.reference import Codebook
from adamas_kernels.torch.backend import TorchBackend
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.dense import LARGEST_BLOCK, LEAST_ROWS, MOST_ROWS
from layer_caches import copied, make_cache, poisoned_memory
from torch import Tensor

ON_GPU = torch.cuda.is_available()
CAPACITY = SEGMENT + 400
# Lengths of three sequences by backend: zero, and around the edges of its blocks.
LENGTHS = {
    "torch": [(0, 1, 70), (129, 15, 16)],
    "triton": [(0, 63, 130), (LARGEST_BLOCK - 1, 1, LARGEST_BLOCK + 1)],
    "cpu": [(0, SEGMENT - 1, 17), (SEGMENT + 1, 1, SEGMENT - 3), (DENSE_SEGMENT - 1, DENSE_SEGMENT, 2100)],
}
CASES = [(name, lengths) for name, choices in LENGTHS.items() for lengths in choices]

pytestmark = [pytest.mark.gpu] if ON_GPU else []


@pytest.fixture(scope="module", params=["torch", "triton", "cpu"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backends() -> dict[str, Backend]:
    return {"torch": TorchBackend(), "triton": TritonBackend(), "cpu": CpuBackend()}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batched(caches: list[LayerCache]) -> LayerCache:
    """Joins caches of one sequence each into one batch."""
    first, *_ = caches
    codes = torch.cat([cache.codes.transpose(-1, -2) for cache in caches]).transpose(-1, -2)
    keys, values, scales, total, length = (
        torch.cat([getattr(cache, name) for cache in caches])
        for name in ("keys", "values", "scales", "value_sum", "length")
    )
    book = Codebook(
        *(torch.cat([vars(cache.codebook)[name] for cache in caches]) for name in vars(first.codebook))
    )
    return LayerCache(keys, values, codes, scales, total, book, length)


def sequences(
    name: str, lengths: tuple[int, ...], settings: SparseSettings, dtype: torch.dtype = torch.float32,
    dim: int = 64, dim_v: int = 64,
) -> list[LayerCache]:  # fmt: skip
    """A cache of two KV heads for each length, on the backend's device."""
    capacity = CAPACITY if name == "cpu" else 200
    device = "cuda" if name == "triton" and ON_GPU else "cpu"
    caches = [make_cache(1, 2, dim, length, capacity, settings, dtype, dim_v) for length in lengths]
    return [copied(cache, device) for cache in caches]


def new_tokens(cache: LayerCache, heads: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `new` tokens of every sequence."""
    batch, kv_heads, _, dim = cache.keys.shape
    shapes = (heads, dim), (kv_heads, dim), (kv_heads, cache.values.shape[3])
    return tuple(torch.randn(batch, count, new, size).to(cache.keys) for count, size in shapes)


def assert_same(found: Tensor, alone: list[Tensor]) -> None:
    """Bit for bit, NaN included; on a GPU within rounding, because the batch sets the number of splits."""
    expected = torch.cat(alone)
    tolerance = 1e-4 if ON_GPU else 0.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_same_caches(found: LayerCache, alone: list[LayerCache]) -> None:
    """Compares whole buffers, also after the last token."""
    expected = batched(alone)
    for part in ("keys", "values", "codes", "scales", "value_sum"):
        a, b = getattr(found, part), getattr(expected, part)
        torch.testing.assert_close(
            a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, part=part: f"{part}: {text}"
        )


STEPS = [(2, 1, "dot", 16), (4, 2, "dot", 40), (2, 2, "manhattan", 16)]
LARGE = (2, 1, "dot", 160)  # a budget shared by several GPU programs; slow in the interpreter


@pytest.mark.parametrize(
    ("name", "lengths", "heads", "new", "scorer", "budget"),
    [*((*case, *step) for case in CASES for step in STEPS), ("triton", (0, 63, 130), *LARGE)],
)
def test_a_sparse_step(backends, name, lengths, heads, new, scorer, budget):
    settings = SparseSettings(budget=budget, scorer=scorer)
    backend, alone = backends[name], sequences(name, lengths, settings)
    together = batched(alone)
    tally = torch.zeros(3, 2, together.capacity, device=together.keys.device)
    tallies = tally.clone().split(1)
    q, k, v = new_tokens(together, heads, new)
    with poisoned_memory():
        out, lse = backend.decode_step(q, k, v, together, 0.125, settings, tally)
        one_by_one = [
            backend.decode_step(*(x[b : b + 1] for x in (q, k, v)), cache, 0.125, settings, tallies[b])
            for b, cache in enumerate(alone)
        ]
    assert_same(out, [out for out, _ in one_by_one])
    assert_same(lse, [lse for _, lse in one_by_one])
    assert_same(tally, tallies)
    assert_same_caches(together, alone)
    assert out.isfinite().all()
    for b, length in enumerate(lengths):
        assert tally[b, 0].sum() == heads * sum(min(budget, length + n + 1) for n in range(new))
        assert not tally[b, :, length + new :].any()


@pytest.mark.parametrize(("name", "lengths"), CASES)
@pytest.mark.parametrize(
    ("heads", "new", "dim_v"),
    [(14, 1, 48), (8, 3, 64), (2, LEAST_ROWS, 64), (MOST_ROWS + 2, 2, 64)],
)
def test_a_dense_step(backends, name, lengths, heads, new, dim_v):
    dtype = torch.float16 if new == 3 else torch.float32
    backend, alone = backends[name], sequences(name, lengths, SparseSettings(), dtype, dim_v=dim_v)
    together = batched(alone)
    uncoded = [DenseCache(x.keys, x.values, x.value_sum, x.length) for x in alone]
    q, k, v = new_tokens(together, heads, new)
    whole = [x.clone() for x in (together.keys, together.values, together.value_sum)]
    with poisoned_memory():
        out, lse = backend.dense_step(q, k, v, together, 0.125)
        one_by_one = [
            backend.dense_step(*(x[b : b + 1] for x in (q, k, v)), cache, 0.125)
            for b, cache in enumerate(uncoded)
        ]
    assert_same(out, [out for out, _ in one_by_one])
    assert_same(lse, [lse for _, lse in one_by_one])
    assert_same_caches(together, alone)
    for b, length in enumerate(lengths):
        expected, expected_lse = attention(
            q[b : b + 1], together.keys[b : b + 1], together.values[b : b + 1], length
        )
        tolerance = 1e-4 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(out[b : b + 1].double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse[b : b + 1].double(), expected_lse, rtol=tolerance, atol=tolerance)
        end = slice(length, length + new)
        assert torch.equal(together.keys[b, :, end], k[b])
        assert torch.equal(together.values[b, :, end], v[b])
        before, after = (whole[0][b, :, :length], together.keys[b, :, :length])
        assert torch.equal(before, after)
    total = whole[2] + v.float().sum(2)
    torch.testing.assert_close(together.value_sum, total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "lengths"), CASES[::2])  # the test above covers other lengths
@pytest.mark.parametrize("budget", [40, 160] if ON_GPU else [40])
def test_a_step_to_an_error(backends, name, lengths, budget):
    settings = SparseSettings(budget=budget, error=2**-6)
    backend, alone = backends[name], sequences(name, lengths, settings)
    together = batched(alone)
    q, k, v = new_tokens(together, 4, 2)
    tally = torch.zeros(3, 2, together.capacity, device=together.keys.device)
    tallies = tally.clone().split(1)
    with poisoned_memory():
        out, lse = backend.decode_step(q, k, v, together, 0.125, settings, tally)
        one_by_one = [
            backend.decode_step(*(x[b : b + 1] for x in (q, k, v)), cache, 0.125, settings, tallies[b])
            for b, cache in enumerate(alone)
        ]
    assert_same(out, [out for out, _ in one_by_one])
    assert_same(lse, [lse for _, lse in one_by_one])
    assert_same(tally, tallies)
    assert out.isfinite().all()
    assert (tally[:, 0].sum(1) <= 8 * budget).all()


def attention(queries: Tensor, keys: Tensor, values: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """Causal attention of the newest tokens after `past` others in float64, with its log-sum-exp."""
    new, group = queries.shape[2], queries.shape[1] // keys.shape[1]
    keys, values = (x[:, :, : past + new].double().repeat_interleave(group, 1) for x in (keys, values))
    seen = torch.ones(new, past + new, dtype=torch.bool, device=keys.device).tril(past)
    scores = (queries.double() @ keys.transpose(-1, -2) * 0.125).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


@pytest.mark.parametrize(("name", "lengths"), CASES)
@pytest.mark.parametrize("new", [2, 40])
def test_a_prefill(backends, name, lengths, new):
    device = torch.device("cuda" if name == "triton" and ON_GPU else "cpu")
    dtype = torch.float32 if name == "torch" else torch.bfloat16
    size = max(lengths) + new + 3
    q, k, v = (
        torch.randn(3, heads, rows, 64).to(device, dtype) for heads, rows in ((4, new), (2, size), (2, size))
    )
    reason = obstacles("prefill", Facts.of(q, k, v))[name]
    if reason is not None and name == "cpu":
        pytest.skip(reason)  # the CPU lacks the instruction; dispatch reports this, too
    backend, before = backends[name], torch.tensor(lengths, dtype=torch.int32, device=device)
    found = backend.prefill(q, k, v, 0.125, before)
    alone = [
        backend.prefill(q[b : b + 1], k[b : b + 1, :, : n + new], v[b : b + 1, :, : n + new], 0.125)
        for b, n in enumerate(lengths)
    ]
    assert_same(found[0], [out for out, _ in alone])
    assert_same(found[1], [lse for _, lse in alone])
    for b, n in enumerate(lengths):
        expected, expected_lse = attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], n)
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(found[0][b : b + 1].double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found[1][b : b + 1].double(), expected_lse, rtol=tolerance, atol=tolerance)
    same = torch.full_like(before, 5)
    equal = backend.prefill(q, k, v, 0.125, same)
    assert torch.equal(equal[0], backend.prefill(q, k[:, :, : 5 + new], v[:, :, : 5 + new], 0.125)[0])


def test_encoded_keys(backends, name):
    caches = sequences(name, (70, 70, 70), SparseSettings())
    together = batched(caches)
    seen = slice(0, 70)
    whole = torch.zeros_like(together.codes), torch.zeros_like(together.scales)
    backends[name].encode_keys(
        together.keys[:, :, seen], together.codebook, whole[0][:, :, seen], whole[1][:, :, seen]
    )
    for b, cache in enumerate(caches):
        codes, scales = torch.zeros_like(cache.codes), torch.zeros_like(cache.scales)
        backends[name].encode_keys(
            cache.keys[:, :, seen], cache.codebook, codes[:, :, seen], scales[:, :, seen]
        )
        assert torch.equal(whole[0][b : b + 1], codes)
        assert torch.equal(whole[1][b : b + 1], scales)


def test_lengths_are_those_of_the_batch(backends, name):
    cache = batched(sequences(name, (5, 6, 7), SparseSettings()))
    q, k, v = new_tokens(cache, 4, 1)
    cache.length = cache.length[:1]
    for step in (
        lambda: backends[name].decode_step(q, k, v, cache, 0.125, SparseSettings()),
        lambda: backends[name].dense_step(q, k, v, cache, 0.125),
    ):
        with pytest.raises(ValueError, match="3 sequences need as many lengths"):
            step()


def test_unequal_sequences_have_no_common_view():
    cache = batched(sequences("torch", (5, 6, 7), SparseSettings()))
    with pytest.raises(ValueError, match="5, 6, 7"):
        cache.view()
    assert [part.view().keys.shape[2] for part in cache.sequences()] == [5, 6, 7]
