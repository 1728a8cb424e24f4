"""Caches and keys for tests of the sparse steps, filled by the specification and poisoned where nothing may
be read, and comparison of a backend's steps with plain torch and with float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from adamas_kernels import reference as ref
from adamas_kernels.contract import Backend, LayerCache, SparseSettings, allocate_codes, fit_codebook
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.backend import TorchBackend
from torch import Tensor

Make = Callable[..., Tensor]  # makes rows of the given shape, as torch.randn does


def with_outliers(*shape: int) -> Tensor:
    """Some channels are sixty times as large as the others."""
    return torch.randn(shape) * torch.where(torch.arange(shape[-1]) % 20 == 5, 60, 1)


def all_equal(*shape: int) -> Tensor:
    """All ranks tie."""
    return torch.ones(shape)


def one_of_two(*shape: int) -> Tensor:
    """Ranks take two values."""
    return torch.ones(shape) * torch.randint(1, 3, (*shape[:3], 1))


def all_equal_but_one(*shape: int) -> Tensor:
    """One rank is far from all others, which tie."""
    keys = torch.ones(shape)
    keys[:, :, shape[2] // 2] = torch.randn(shape[-1])
    return keys


def ascending(*shape: int) -> Tensor:
    """Ranks rise, or fall, with the position."""
    return torch.ones(shape) * torch.linspace(-2, 2, shape[2])[:, None]


def all_magnitudes(*shape: int) -> Tensor:
    """Lengths along one line spread over thirteen orders of magnitude: many ranks tie or nearly do."""
    return torch.ones(shape) * torch.exp(-30 * torch.rand(shape[2]))[:, None]


def too_small_for_a_scale(*shape: int) -> Tensor:
    """Scales are zero in float16, and ranks zeros of both signs."""
    return 1e-9 * torch.randn(shape)


def zeros(*shape: int) -> Tensor:
    """Keys, or queries, that cannot be told apart."""
    return torch.zeros(shape)


ODD_KEYS = (
    with_outliers,
    all_equal,
    one_of_two,
    all_equal_but_one,
    ascending,
    all_magnitudes,
    too_small_for_a_scale,
    zeros,
)


def make_cache(
    batch: int,
    kv_heads: int,
    dim: int,
    length: int,
    capacity: int,
    settings: SparseSettings,
    dtype: torch.dtype = torch.float32,
    dim_v: int | None = None,
    make: Make = torch.randn,
) -> LayerCache:
    """A cache of `length` tokens, with keys from `make` and the reference's codes.

    Unused rows hold NaN, infinities and random codes. The cache is on torch's default device. Without tokens,
    the codebook is that of one extra key.
    """
    dim_v = dim_v or dim
    filled = slice(0, length)
    first = make(batch, kv_heads, max(length, 1), dim).to(dtype)
    keys = torch.full((batch, kv_heads, capacity, dim), torch.inf, dtype=dtype)
    keys[:, :, filled] = first[:, :, filled]
    values = torch.full((batch, kv_heads, capacity, dim_v), torch.nan, dtype=dtype)
    values[:, :, filled] = torch.randn(batch, kv_heads, length, dim_v).to(dtype)
    book = some_codebook(first, settings)
    codes, scales = allocate_codes(keys, capacity)
    codes.random_(-(2**31), 2**31 - 1)
    scales.fill_(torch.nan)
    found = ref.encode_keys(first, book)
    codes[:, :, filled], scales[:, :, filled] = (x[:, :, filled] for x in found)
    total = values[:, :, filled].float().sum(2)
    return LayerCache(
        keys, values, codes, scales, total, book, torch.full((batch,), length, dtype=torch.int32)
    )


def some_codebook(keys: Tensor, settings: SparseSettings | None = None) -> ref.Codebook:
    """The codebook of keys [B, K, N, D] and of queries whose last coordinates are a hundred times larger."""
    power = torch.linspace(0.1, 10, keys.shape[-1], device=keys.device).square().expand(*keys.shape[:2], -1)
    return fit_codebook(keys, power, settings or SparseSettings())


def copied(cache: LayerCache, device: torch.device | str | None = None) -> LayerCache:
    """The same cache on another device, with the same strides."""

    def copy(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device or x.device).copy_(x)

    buffers = (cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum)
    book = ref.Codebook(*(copy(x) for x in vars(cache.codebook).values()))
    return LayerCache(*(copy(x) for x in buffers), book, copy(cache.length))


def spread_out(cache: LayerCache) -> LayerCache:
    """The same cache as parts of larger buffers, with odd strides and NaN all around."""

    def within(x: Tensor) -> Tensor:
        batch, heads, rows, columns = x.shape
        wide = torch.full((batch, heads + 1, rows + 3, columns + 5), torch.nan, dtype=x.dtype)
        view = wide[:, 1:, 2:-1, 1:-4]
        view.copy_(x)
        return view

    codes = cache.codes.transpose(-1, -2)
    wide = torch.full((len(codes), codes.shape[1], codes.shape[2] + 2, codes.shape[3] + 9), -1).int()
    wide[:, :, 1:-1, 2:-7] = codes
    return LayerCache(
        within(cache.keys), within(cache.values), wide[:, :, 1:-1, 2:-7].transpose(-1, -2),
        within(cache.scales.unsqueeze(-2))[:, :, 0], cache.value_sum, cache.codebook, cache.length,
    )  # fmt: skip


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills what torch.empty returns with NaN, or with the largest integers."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def double_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """Attention of the newest tokens, queries [B, H, N, D], to all, [B, K, S, D], by definition in float64:
    outputs and log-sum-exps.
    """
    groups, (new, size) = queries.shape[1] // keys.shape[1], (queries.shape[2], keys.shape[2])
    keys, values = (x.double().repeat_interleave(groups, 1) for x in (keys, values))
    scores = queries.double() @ keys.transpose(-1, -2) * scaling
    if softmax.softcap:
        scores = softmax.softcap * torch.tanh(scores / softmax.softcap)
    own, position = ref.own_positions(new, size, keys.device), torch.arange(size, device=keys.device)
    hidden = (position > own) | (position <= own - (softmax.window or size))
    scores = scores.masked_fill(hidden, -torch.inf)
    if softmax.sinks is not None:  # one extra token, whose value is zero
        sinks = softmax.sinks.double()[:, None, None].expand(len(scores), -1, new, -1)
        scores = torch.cat([scores, sinks], -1)
        values = torch.cat([values, torch.zeros_like(values[:, :, :1])], 2)
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


def double_step(
    queries: Tensor, cache: LayerCache, scaling: float, settings: SparseSettings, softmax: Softmax = PLAIN
) -> tuple[Tensor, Tensor]:
    """The step in float64 with the reference's ranks and selection, after the new tokens were added."""
    view, settings = cache.view(), settings.under(softmax)
    groups = queries.shape[1] // view.keys.shape[1]
    rotated = ref.rotate_queries(queries, cache.codebook)
    if settings.scorer == "dot":
        query, unit = ref.encode_query(rotated)
        rank = ref.rank_by_dot(query, view.codes, view.scales)
    else:
        rank = -ref.manhattan(rotated, view.codes, settings.edge).float()
    reaching = None
    if settings.error is not None:
        reaching = ref.reaches_error(
            queries, view.keys, rank, unit, cache.codebook, scaling, settings.forced, settings.error
        )
    index = ref.select(rank, settings.budget, *settings.forced, reaching)
    keys, values = (x.double().repeat_interleave(groups, 1) for x in (view.keys, view.values))
    new, size = rank.shape[-2:]
    own = ref.own_positions(new, size, rank.device)
    visible = torch.arange(size, device=rank.device) <= own
    chosen = torch.zeros(*rank.shape[:3], size + 1, dtype=torch.bool, device=rank.device)
    chosen = chosen.scatter(-1, index, True)[..., :size] & visible
    scores = softmax.capped(queries.double() @ keys.transpose(-1, -2) * scaling)
    scores = scores.masked_fill(~chosen, -torch.inf)
    out, lse = scores.softmax(-1) @ values, scores.logsumexp(-1)
    if settings.compensated and (settings.budget < size or settings.error is not None):
        left = (visible & ~chosen).double()
        mean, noise = (
            x.double().repeat_interleave(groups, 1).unsqueeze(2)
            for x in (cache.codebook.mean, cache.codebook.noise)
        )
        offset = (rotated.double() * mean).sum(-1, keepdim=True)
        variance = scaling**2 * rotated.double().square().sum(-1, keepdim=True) * noise.unsqueeze(-1)
        estimate = scaling * (rank.double() * unit.double().unsqueeze(-1) + offset) - variance / 2
        estimate = softmax.capped(estimate)
        mass = estimate.masked_fill(left == 0, -torch.inf).logsumexp(-1)
        rest = left @ values / left.sum(-1, keepdim=True).clamp(min=1)
        out, lse = ref.merge(out, lse, rest, mass)
    if softmax.sinks is not None:
        sinks = softmax.sinks.double()[None, :, None].expand_as(lse)
        out, lse = ref.merge(out, lse, torch.zeros_like(out), sinks)
    return out, lse


def assert_no_worse(found: Tensor, plain: Tensor, truth: Tensor) -> None:
    """The error of `found` against float64 is within that of plain torch in the same dtype."""
    error, allowed = (found.double() - truth).abs().max(), (plain.double() - truth).abs().max()
    # When sums of hundreds of values nearly cancel, no order of summation gives the rest more exactly.
    assert error <= 1.5 * allowed + 3e-6 * (1 + truth.abs().max())


def step(
    backend: Backend, cache: LayerCache, q: Tensor, k: Tensor, v: Tensor,
    settings: SparseSettings, scaling: float = 0.125, softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One step, with the length advanced: output, log-sum-exp and tally."""
    tally = torch.zeros(len(q), 2, cache.keys.shape[2], device=q.device)
    out, lse = backend.decode_step(q, k, v, cache, scaling, settings, tally, softmax)
    cache.length += k.shape[2]
    return out, lse, tally


def check_steps(
    backend: Backend,
    cache: LayerCache,
    heads: int,
    new: int,
    settings: SparseSettings,
    steps: int = 1,
    make: Make = torch.randn,
    make_queries: Make = torch.randn,
    device: torch.device | str | None = None,
    softmax: Softmax = PLAIN,
) -> LayerCache:
    """Runs steps of plain torch on this cache, and of a backend on a copy of it on `device`: the same
    selection, the same contents, and errors no larger. Returns the copy.
    """
    batch, kv_heads, _, dim = cache.keys.shape
    dtype, scaling = cache.keys.dtype, dim**-0.5
    other = copied(cache, device)
    sinks = None if softmax.sinks is None else softmax.sinks.to(other.keys.device)
    there = replace(softmax, sinks=sinks)

    def rows(make: Make, count: int, columns: int) -> Tensor:
        """[B, count, N, columns], laid out as a model's projections leave them."""
        return make(batch, count, new, columns).to(dtype).transpose(1, 2).contiguous().transpose(1, 2)

    for _ in range(steps):
        q, k, v = (
            rows(make_queries, heads, dim),
            rows(make, kv_heads, dim),
            rows(torch.randn, kv_heads, cache.values.shape[3]),
        )
        plain = step(TorchBackend(), cache, q, k, v, settings, scaling, softmax)
        truth = double_step(q, cache, scaling, settings, softmax)
        moved = (x.to(other.keys.device) for x in (q, k, v))
        with poisoned_memory():
            found = [x.to(q.device) for x in step(backend, other, *moved, settings, scaling, there)]
        assert_same_contents(copied(other, q.device), cache)
        assert torch.equal(found[2][:, 0], plain[2][:, 0])  # the chosen positions
        torch.testing.assert_close(found[2][:, 1], plain[2][:, 1], rtol=1e-4, atol=1e-5)
        assert found[0].dtype == dtype
        for results in zip(found[:2], plain[:2], truth, strict=True):
            assert_no_worse(*results)
    return other


def check_strided_inputs(backend: Backend, device: torch.device | str | None = None) -> None:
    """A step on every other number of wider tensors, with keys of a dtype other than the cache's."""
    settings = SparseSettings(budget=16)
    cache = make_cache(2, 2, 64, 120, 150, settings, torch.bfloat16)
    other = copied(cache, device)
    wide = (torch.randn(2, 1, heads, 128, device=device).bfloat16() for heads in (4, 2, 2))
    q, k, v = (x[..., ::2].transpose(1, 2) for x in wide)
    plain = step(TorchBackend(), cache, *(x.to(cache.keys.device) for x in (q, k, v)), settings)
    with poisoned_memory():
        found = step(backend, other, q, k.float(), v, settings)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a.to(b.device), b, rtol=1e-2, atol=1e-5)
    assert_same_contents(copied(other, cache.keys.device), cache)


def assert_same_contents(found: LayerCache, expected: LayerCache) -> None:
    """Both caches hold the same tokens, bit for bit, and the same sums of values within rounding."""
    a, b = found.view(), expected.view()
    for name in ("keys", "values", "codes", "scales"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.value_sum, b.value_sum, rtol=1e-5, atol=1e-4)


def encoded_in_the_middle(backend: Backend, keys: Tensor, book: ref.Codebook) -> tuple[Tensor, Tensor]:
    """Codes and scales of keys that a backend wrote into the middle of larger buffers, and nowhere else."""
    count = keys.shape[2]
    middle = slice(3, count + 3)
    codes, scales = allocate_codes(keys, count + 7)
    codes.fill_(-1)
    scales.fill_(torch.nan)
    backend.encode_keys(keys, book, codes[:, :, middle], scales[:, :, middle])
    around = [*range(3), *range(count + 3, count + 7)]
    assert (codes[:, :, around] == -1).all()
    assert scales[:, :, around].isnan().all()
    return codes[:, :, middle], scales[:, :, middle]
