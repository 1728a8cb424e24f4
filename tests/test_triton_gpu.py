"""What only a GPU can test in the Triton kernels: assembly, overlap, graphs, repetition and long contexts."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels import dispatch
from adamas_kernels import reference as ref
from adamas_kernels.contract import SparseSettings
from adamas_kernels.triton.backend import TritonBackend
from adamas_kernels.triton.launch import chains
from layer_caches import (
    assert_same_contents,
    check_steps,
    copied,
    encoded_in_the_middle,
    make_cache,
    some_codebook,
    step,
)

DEVICE = torch.device("cuda")
LONG, SPARE = 32768, 64  # tokens in a cache, and spare room
SCORERS = ("dot", "manhattan")

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _on_the_gpu():
    torch.manual_seed(0)
    with DEVICE:
        yield


def new_tokens(cache, heads, new=1):
    """Random queries, keys and values for a step."""
    batch, kv_heads, _, dim = cache.keys.shape
    return [torch.randn(batch, count, new, dim).to(cache.keys.dtype) for count in (heads, kv_heads, kv_heads)]


def long_cache(heads, kv_heads, dim, dtype, settings, steps=2):
    """A cache of 32K tokens after a few steps."""
    cache = make_cache(1, kv_heads, dim, LONG, LONG + SPARE, settings, dtype)
    for _ in range(steps):
        step(TritonBackend(), cache, *new_tokens(cache, heads), settings)
    return cache


def check_the_same(one, other, new, settings, steps=3):
    """Two backends that differ in method, not in results."""
    heads = 8
    cache = make_cache(1, 2, 128, LONG, LONG + SPARE, settings, torch.float16)
    twin = copied(cache)
    for _ in range(steps):
        tokens = new_tokens(cache, heads, new)
        expected, found = step(one, cache, *tokens, settings), step(other, twin, *tokens, settings)
        assert torch.equal(found[2][:, 0], expected[2][:, 0])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert_same_contents(twin, cache)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("new", [1, 3])
def test_assembly_computes_what_plain_arithmetic_does(scorer, new):
    settings = SparseSettings(scorer=scorer)
    check_the_same(TritonBackend(fast=False), TritonBackend(fast=True), new, settings)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("new", [1, 16])  # sixteen exceed the recents, whose codes nothing waits for
@pytest.mark.parametrize("budget", [32, 768])
def test_overlapped_launches_compute_what_separate_ones_do(scorer, new, budget):
    settings = SparseSettings(budget=budget, scorer=scorer)
    check_the_same(TritonBackend(chained=False), TritonBackend(chained=chains(DEVICE)), new, settings)


@pytest.mark.parametrize("new", [1, 16])
@pytest.mark.parametrize("budget", [128, 1024])
def test_overlapped_launches_stop_where_separate_ones_do(new, budget):
    settings = SparseSettings(budget=budget, error=2**-7)
    check_the_same(TritonBackend(chained=False), TritonBackend(chained=chains(DEVICE)), new, settings)


@pytest.mark.parametrize("error", [None, 2**-6])
@pytest.mark.parametrize("budget", [16, 300])
def test_a_graph_computes_what_its_launches_do(budget, error):
    """The captured length advances on its own, and no grid depends on it."""
    settings = SparseSettings(budget=budget, error=error)
    heads, backend = 8, TritonBackend()
    cache = make_cache(1, 2, 128, 1000, 1100, settings, torch.float16)
    captured = copied(cache)
    tokens = new_tokens(cache, heads)
    backend.decode_step(*tokens, copied(captured), 0.125, settings)  # compiles and allocates
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = backend.decode_step(*tokens, captured, 0.125, settings)
        captured.length += 1
    eager = TritonBackend()
    for _ in range(20):
        for buffer, fresh in zip(tokens, new_tokens(cache, heads), strict=True):
            buffer.copy_(fresh)
        graph.replay()
        expected = eager.decode_step(*tokens, cache, 0.125, settings)
        cache.length += 1
        assert torch.equal(out, expected[0])
        assert torch.equal(lse, expected[1])
    assert int(captured.length) == int(cache.length) == 1020
    assert torch.equal(captured.view().codes, cache.view().codes)


@pytest.mark.parametrize("budget", [128, 768, 1472])
def test_the_same_step_gives_the_same_bits(budget):
    """No sum depends on the order in which programs finish."""
    settings = SparseSettings(budget=budget)
    cache = long_cache(32, 8, 128, torch.float16, settings)
    tokens, backend = new_tokens(cache, 32), TritonBackend()
    first, *others = (step(backend, copied(cache), *tokens, settings) for _ in range(6))
    for other in others:
        assert torch.equal(other[0], first[0])
        assert torch.equal(other[1], first[1])
        assert torch.equal(other[2][:, 0], first[2][:, 0])


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype", "budget"),
    [
        (32, 8, 128, torch.float16, 128),
        (14, 2, 64, torch.bfloat16, 128),
        (32, 8, 128, torch.float16, 1024),
    ],
)
def test_long_contexts(scorer, heads, kv_heads, dim, dtype, budget):
    """Programs take several turns here."""
    settings = SparseSettings(budget=budget, scorer=scorer)
    cache = make_cache(1, kv_heads, dim, LONG, LONG + SPARE, settings, dtype)
    check_steps(TritonBackend(), cache, heads, 1, settings, steps=3)


@pytest.mark.parametrize("error", [2**-6, 2**-9, 2**-12])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype", "budget"),
    [
        (32, 8, 128, torch.float16, 128),
        (14, 2, 64, torch.bfloat16, 128),
        (32, 8, 128, torch.bfloat16, 1024),
    ],
)
def test_an_error_in_a_long_context(heads, kv_heads, dim, dtype, budget, error):
    """Heads that attend broadly stop at the same token as the reference; so do heads that attend to few."""
    settings = SparseSettings(budget=budget, error=error)
    cache = make_cache(1, kv_heads, dim, LONG, LONG + SPARE, settings, dtype)

    def large(*shape):
        return torch.randn(shape) * torch.logspace(-1, 1, shape[1])[:, None, None]

    check_steps(TritonBackend(), cache, heads, 1, settings, steps=3, make_queries=large)


@pytest.mark.parametrize("dim", [64, 80, 128])
def test_8k_keys_get_the_codes_of_the_reference(dim):
    keys = (torch.randn(1, 8192, 4, dim) * torch.linspace(0.1, 9, dim)).bfloat16().transpose(1, 2)
    book = some_codebook(keys)
    codes, scales = ref.encode_keys(keys, book)
    found = encoded_in_the_middle(TritonBackend(), keys, book)
    assert torch.equal(found[0], codes)
    assert torch.equal(found[1], scales)


def test_triton_is_the_first_choice():
    assert dispatch.pick("auto", DEVICE) == ("triton", None)
