"""Windows, soft caps and learned sinks in every backend, against the definition in float64. Triton runs in
its interpreter here, and natively with `-m gpu` on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.contract import Backend, DenseCache, SparseSettings
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.softmax import Softmax
from adamas_kernels.torch import prefill
from adamas_kernels.torch.backend import TorchBackend
from adamas_kernels.triton.backend import TritonBackend
from layer_caches import check_steps, double_attention, make_cache

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SINKS = torch.tensor([2.0, -1.0, 0.0, 4.0])
CASES = {
    "a window": Softmax(window=37),
    "a wider window": Softmax(window=600),
    "sinks": Softmax(sinks=SINKS),
    "a soft cap": Softmax(softcap=2.0),
    "all three": Softmax(37, 2.0, SINKS),
}
BACKENDS = {
    "torch": TorchBackend(),
    "cpu": CpuBackend(),
    "triton": pytest.param(TritonBackend(), marks=[pytest.mark.gpu] if GPU.type == "cuda" else []),
}


def on(backend: Backend, softmax: Softmax) -> tuple[torch.device, Softmax]:
    """A backend's device, and the softmax on it."""
    device = GPU if backend.name == "triton" else torch.device("cpu")
    sinks = None if softmax.sinks is None else softmax.sinks.to(device)
    return device, Softmax(softmax.window, softmax.softcap, sinks)


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def backend(request) -> Backend:
    return request.param


@pytest.fixture(params=CASES.values(), ids=CASES)
def softmax(request) -> Softmax:
    torch.manual_seed(0)
    return request.param


def test_a_cap_and_a_sink_by_hand():
    softmax = Softmax(softcap=2.0, sinks=torch.tensor([0.0]))
    assert softmax.capped(torch.tensor(2.0)).item() == pytest.approx(2 * 0.76159, abs=1e-4)
    out, lse = softmax.with_sinks(torch.full((1, 1, 1, 1), 8.0), torch.zeros(1, 1, 1))
    assert out.item() == pytest.approx(4)  # the sink has half of the mass
    assert lse.item() == pytest.approx(0.6931, abs=1e-4)


def test_a_chunk(backend, softmax, monkeypatch):
    monkeypatch.setattr(prefill, "BLOCK", 1 << 13)  # so that torch takes several blocks
    device, softmax = on(backend, softmax)
    dtype = torch.bfloat16 if backend.name == "cpu" else torch.float16
    queries, keys, values = (
        torch.randn(1, heads, size, 64, device=device).to(dtype)
        for heads, size in ((4, 90), (2, 400), (2, 400))
    )
    out, lse = backend.prefill(queries, keys, values, 0.2, softmax=softmax)
    expected, expected_lse = double_attention(queries, keys, values, 0.2, softmax)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("softmax", "new"),
    [
        (CASES["a window"], 1),
        (CASES["a window"], 3),
        (CASES["a wider window"], 1),
        (CASES["sinks"], 3),
        (CASES["a soft cap"], 1),
        (CASES["all three"], 3),
    ],
)
def test_a_dense_step_in_a_ring(backend, softmax, new):
    """Sequences of two lengths in the fewest possible rows, with NaN where there is no token."""
    torch.manual_seed(0)
    device, softmax = on(backend, softmax)
    lengths, size = (29, 777), 777 + new
    rows = size if softmax.window is None else softmax.window + new - 1
    keys, values = torch.randn(2, 2, size, 64, device=device), torch.randn(2, 2, size, 48, device=device)
    queries = torch.randn(2, 4, new, 64, device=device)
    cache = DenseCache(
        torch.full((2, 2, rows, 64), torch.nan, device=device),
        torch.full((2, 2, rows, 48), torch.nan, device=device),
        None,
        torch.tensor(lengths, dtype=torch.int32, device=device),
    )
    fresh = [x.new_empty(2, 2, new, x.shape[-1]) for x in (keys, values)]
    for b, length in enumerate(lengths):
        known = torch.arange(max(0, length - rows + new), length)
        for ring, all_rows, last in zip((cache.keys, cache.values), (keys, values), fresh, strict=True):
            ring[b, :, known % rows] = all_rows[b, :, known]
            last[b] = all_rows[b, :, length : length + new]
    out, lse = backend.dense_step(queries, *fresh, cache, 0.2, softmax)
    for b, length in enumerate(lengths):
        seen = [x[b : b + 1, :, : length + new] for x in (keys, values)]
        expected, expected_lse = double_attention(queries[b : b + 1], *seen, 0.2, softmax)
        torch.testing.assert_close(out[b : b + 1].double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(lse[b : b + 1].double(), expected_lse, rtol=1e-4, atol=1e-4)
        at = torch.arange(length, length + new) % rows
        assert torch.equal(cache.keys[b, :, at], fresh[0][b])
        assert torch.equal(cache.values[b, :, at], fresh[1][b])


@pytest.mark.parametrize(
    ("softmax", "settings"),
    [
        (Softmax(sinks=SINKS[:2]), SparseSettings(budget=24, scorer="manhattan")),
        (Softmax(softcap=2.0, sinks=SINKS[:2]), SparseSettings(budget=24)),
        (
            Softmax(softcap=2.0, sinks=SINKS[:2]),
            SparseSettings(budget=140, error=0.01),
        ),  # several programs in Triton
    ],
)
def test_a_sparse_step(backend, softmax, settings):
    torch.manual_seed(1)
    device, _ = on(backend, softmax)
    with torch.device("cpu"):
        cache = make_cache(1, 1, 64, 170, 180, settings)
    check_steps(backend, cache, 2, 1, settings, device=device, softmax=softmax)


def test_whole_budgets_are_full_attention_with_sinks_and_caps():
    settings, softmax = SparseSettings(budget=500), Softmax(softcap=3.0, sinks=SINKS)
    cache = make_cache(1, 2, 64, 300, 340, settings)
    q, k, v = (torch.randn(1, heads, 1, 64) for heads in (4, 2, 2))
    out, lse = TorchBackend().decode_step(q, k, v, cache, 0.2, settings, softmax=softmax)
    seen = cache.keys[:, :, :301], cache.values[:, :, :301]
    expected, expected_lse = double_attention(q, *seen, 0.2, softmax)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_compensation_takes_estimates_as_they_are_capped():
    """Scores far above the cap weigh the same, so that skipped tokens have the mass of the others."""
    settings, softmax = SparseSettings(budget=32), Softmax(softcap=0.01)
    cache = make_cache(1, 1, 64, 400, 440, settings)
    q, k, v = (torch.randn(1, 1, 1, 64) for _ in range(3))
    _, lse = TorchBackend().decode_step(q, k, v, cache, 100.0, settings, softmax=softmax)
    assert lse.item() == pytest.approx(torch.tensor(401.0).log().item(), abs=0.02)


def test_what_does_not_fit_is_refused(backend):
    softmax, settings = Softmax(window=16), SparseSettings()
    cache = make_cache(1, 2, 64, 30, 40, settings)
    q, k, v = (torch.randn(1, heads, 1, 64) for heads in (4, 2, 2))
    with pytest.raises(ValueError, match="window"):
        backend.decode_step(q, k, v, cache, 0.2, settings, softmax=softmax)
    with pytest.raises(ValueError, match="as many sinks"):
        backend.dense_step(q, k, v, cache, 0.2, Softmax(sinks=torch.zeros(3)))
