"""The specification against numbers computed by hand, and its parts against plain definitions."""

from __future__ import annotations

import math

import pytest
import torch
from adamas_kernels import reference as ref
from adamas_kernels.contract import LayerView, SparseSettings
from adamas_kernels.torch.backend import TorchBackend
from adamas_kernels.torch.step import attend_newest
from layer_caches import make_cache
from torch import Tensor


def view(keys: torch.Tensor, values: torch.Tensor, **codebook) -> LayerView:
    book = ref.fit_codebook(keys, **codebook)
    codes, scales = ref.encode_keys(keys, book)
    return LayerView(keys, values, codes, scales, values.float().sum(2), book)


def hadamard(size: int) -> torch.Tensor:
    """The orthonormal matrix in Sylvester's order by definition: the sign is the parity of i & j."""
    parity = torch.tensor([[(i & j).bit_count() % 2 for j in range(size)] for i in range(size)])
    return (1 - 2 * parity).float() / math.sqrt(size)


def test_rotation_of_sixteen_by_hand():
    unit = torch.eye(16)
    assert torch.equal(ref.rotate(unit[0]), torch.full((16,), 0.25))
    assert ref.rotate(unit[1]).tolist() == [0.25, -0.25] * 8
    assert ref.rotate(unit[6]).tolist() == [0.25, 0.25, -0.25, -0.25, -0.25, -0.25, 0.25, 0.25] * 2


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_rotation_is_the_hadamard_matrix(size):
    x = torch.randn(3, size)
    torch.testing.assert_close(ref.rotate(x), x @ hadamard(size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head_dim", "padded"), [(1, 16), (16, 16), (64, 64), (80, 128), (96, 128), (256, 256)]
)
def test_rotation_pads_and_keeps_dot_products(head_dim, padded):
    q, k = torch.randn(5, head_dim), torch.randn(7, head_dim)
    assert ref.rotate(q).shape == (5, padded)
    torch.testing.assert_close(ref.rotate(q) @ ref.rotate(k).T, q @ k.T, rtol=1e-4, atol=1e-4)


def test_bucketize_counts_the_edges_strictly_below():
    values = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    assert ref.bucketize(values, torch.tensor(2.0)).tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_pack_layout_by_hand():
    codes = torch.zeros(16, dtype=torch.int32)
    codes[0], codes[1], codes[4], codes[15] = 3, 2, 1, 3
    # coordinate 4i + b at bit 8b + 2i: 3 << 0, 2 << 8, 1 << 2, 3 << 30
    word = (3 | 2 << 8 | 1 << 2 | 3 << 30) - (1 << 32)
    assert ref.pack(codes).tolist() == [word]
    assert ref.unpack(ref.pack(codes)).tolist() == codes.tolist()


def test_pack_and_unpack_are_inverse():
    codes = torch.randint(0, 4, (2, 3, 5, 128), dtype=torch.int32)
    assert torch.equal(ref.unpack(ref.pack(codes)).int(), codes)


def test_dot_and_manhattan_by_hand():
    codes = torch.tensor([[0] * 16, [3] * 16, [2] * 8 + [1] * 8], dtype=torch.int32)
    packed = ref.pack(codes).view(1, 1, 3, 1)
    query = torch.arange(16, dtype=torch.int8).view(1, 1, 1, 16)
    # levels 2c - 3: all -3, all 3, then 8 times 1 and 8 times -1; 0 + .. + 15 = 120, 0 + .. + 7 = 28
    assert ref.dot(query, packed).flatten().tolist() == [-360, 360, 28 - 92]
    rotated = torch.tensor([20.0, 1.0, -1.0, -20.0] * 4)  # codes 3, 2, 1, 0 with edge 10
    raw = (rotated @ hadamard(16)).view(1, 1, 1, 16)
    assert ref.manhattan(ref.rotate(raw), packed, 10.0).flatten().tolist() == [24, 24, 16]


def test_distance_is_exact_on_the_pair_that_bit_planes_get_wrong():
    one, two = torch.full((1, 1, 1, 16), 1), torch.full((1, 1, 1, 16), 2)
    rotated = torch.full((1, 1, 1, 16), 1.0)  # code 2 with edge 10
    assert ref.manhattan(rotated, ref.pack(one), 10.0).item() == 16
    assert ref.manhattan(rotated, ref.pack(two), 10.0).item() == 0


def test_query_encoding_by_hand():
    rotated = torch.zeros(16)
    rotated[0], rotated[1], rotated[2] = 127.0, -63.5, 2.5
    codes, step = ref.encode_query(rotated.view(1, 1, 1, 16))
    assert step.item() == pytest.approx(1.0)
    assert codes.flatten()[:2].tolist() == [127, -64]
    zero, step = ref.encode_query(torch.zeros(1, 1, 1, 16))
    assert not zero.any()
    assert step.item() == 0


def test_estimate_is_calibrated():
    torch.manual_seed(0)
    keys, queries = torch.randn(1, 2, 400, 64) + 0.7, torch.randn(1, 6, 1, 64)
    book = ref.fit_codebook(keys)
    codes, scales = ref.encode_keys(keys, book)
    query, step = ref.encode_query(ref.rotate_queries(queries, book))
    estimate = ref.rank_by_dot(query, codes, scales) * step.unsqueeze(-1)
    centred = ref.rotate(keys) - book.mean.unsqueeze(2)
    truth = ref.rotate(queries).view(1, 2, 3, 64) @ centred.transpose(-1, -2)
    slope = (estimate.flatten() @ truth.flatten()) / truth.square().sum()
    assert slope == pytest.approx(0.88, abs=0.03)  # 1 - the distortion 0.1175 of the optimal 2-bit quantizer
    assert torch.corrcoef(torch.stack([estimate.flatten(), truth.flatten()]))[0, 1] > 0.9


def test_balance_by_hand():
    keys = torch.tensor([[1.0, 0.0, 3.0, 5.0], [-1.0, 0.0, -3.0, 5.0]]).view(1, 1, 2, 4)
    power = torch.tensor([16.0**4, 5.0, 9.0, 0.0]).view(1, 1, 4)
    factor = ref.balance(keys, power).flatten()
    assert factor.shape == (16,)
    assert (factor[4:] == 1).all()
    # Variances 1, 0, 9, 0: (power / variance)^(1/8) is 4 and 1, up to a common factor.
    assert factor[0] / factor[2] == pytest.approx(4, rel=1e-3)
    assert factor[:4].log().sum() == pytest.approx(0, abs=1e-5)
    assert factor.isfinite().all()
    assert (ref.balance(torch.ones(1, 1, 3, 16), torch.zeros(1, 1, 16)) == 1).all()


def test_power_is_that_of_all_queries_of_a_kv_head():
    queries = torch.zeros(1, 4, 2, 16)
    queries[0, 2, 0, 5], queries[0, 3, 1, 5] = 2.0, 4.0
    power = ref.query_power(queries, 2)
    assert power.shape == (1, 2, 16)
    assert power[0, 1, 5] == (4 + 16) / 4
    assert power.sum() == 5


def test_balance_leaves_scores_and_lowers_their_error():
    torch.manual_seed(0)
    spread = torch.linspace(-2, 2, 64).exp()
    keys, queries = torch.randn(1, 2, 400, 64) / spread, torch.randn(1, 6, 5, 64) * spread
    errors = []
    for power in (None, ref.query_power(queries, 2)):
        book = ref.fit_codebook(keys, power=power)
        rotated = ref.rotate_queries(queries, book)
        truth = queries.view(1, 2, 15, 64) @ keys.transpose(-1, -2)
        exact = ref.rotate(ref.stretched(keys, book.balance))
        torch.testing.assert_close(
            rotated.view(1, 2, 15, 64) @ exact.transpose(-1, -2), truth, rtol=1e-3, atol=1e-3
        )
        codes, scales = ref.encode_keys(keys, book)
        query, step = ref.encode_query(rotated)
        estimate = ref.rank_by_dot(query, codes, scales) * step.unsqueeze(-1)
        offset = rotated.view(1, 2, 15, 64) @ book.mean.unsqueeze(-1)
        error = (estimate.view(1, 2, 15, 400) + offset - truth).square().mean(-1)
        errors.append(error.mean())
    # The codebook holds the size of the error.
    expected = rotated.view(1, 2, 15, 64).square().sum(-1) * book.noise.unsqueeze(-1)
    assert error.mean() / expected.mean() == pytest.approx(1, abs=0.2)
    assert errors[1] < 0.5 * errors[0]


def test_noise_by_hand():
    rotated = torch.tensor([1.0, -1.0] * 8)  # levels 1 and -1 with edge 10: nothing is lost
    odd = torch.tensor([2.0, -1.0] * 8)  # the best scale for these levels is 1.5
    keys = (torch.stack([rotated, odd]) @ hadamard(16)).view(1, 1, 2, 16)
    assert ref.fit_codebook(keys[:, :, :1], 10.0, centre=False).noise.item() == pytest.approx(0, abs=1e-6)
    assert ref.fit_codebook(keys[:, :, 1:], 10.0, centre=False).noise.item() == pytest.approx(0.25)


def test_selection_takes_the_best_and_the_lowest_of_equals():
    scores = torch.tensor([1.0, 5.0, 3.0, 5.0, 3.0, 3.0, 0.0]).view(1, 1, 1, 7)
    assert ref.select(scores, 4, sinks=0, recents=1).flatten().tolist() == [1, 2, 3, 6]
    assert ref.select(torch.zeros(1, 1, 1, 7), 3, sinks=0, recents=1).flatten().tolist() == [0, 1, 6]
    assert ref.select(scores, 4, sinks=2, recents=2).flatten().tolist() == [0, 1, 5, 6]
    assert ref.select(scores, 99, sinks=0, recents=1).flatten().tolist() == list(range(7))


def test_several_queries_see_nothing_later_than_themselves():
    scores = torch.tensor([[9.0, 1.0, 2.0, 8.0, 8.0], [9.0, 1.0, 2.0, 8.0, 8.0]]).view(1, 1, 2, 5)
    index = ref.select(scores, 2, sinks=0, recents=1)
    assert index.tolist() == [[[[0, 3], [0, 4]]]]


def test_attention_by_hand():
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]).view(1, 1, 3, 2)
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [100.0, 100.0]]).view(1, 1, 3, 2)
    query = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)
    # scores log 3 and 0 over the first two tokens: weights 3/4 and 1/4, log-sum-exp log 4
    out, lse = ref.attend(query, keys, values, torch.tensor([[[[0, 1]]]]), 1.0)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.75, 0.25]))
    assert lse.item() == pytest.approx(math.log(4.0))


def test_merging_parts_gives_the_whole():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 9, 16), torch.randn(1, 1, 9, 16)
    parts = [
        ref.attend(q, k, v, torch.tensor(part).view(1, 1, 1, -1), 0.25)
        for part in ([0, 3, 4], [1, 2, 5, 6, 7, 8])
    ]
    whole = ref.attend(q, k, v, torch.arange(9).view(1, 1, 1, -1), 0.25)
    merged = ref.merge(*parts[0], *parts[1])
    torch.testing.assert_close(merged, whole)
    empty = (torch.zeros_like(whole[0]), torch.full_like(whole[1], -torch.inf))
    torch.testing.assert_close(ref.merge(*whole, *empty), whole)


@pytest.mark.parametrize("scorer", ["dot", "manhattan"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (9, 3), (14, 2)])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("size", [3, 31, 32, 33])
def test_a_budget_of_the_whole_context_is_full_attention(scorer, heads, kv_heads, new, size):
    torch.manual_seed(size)
    q = torch.randn(2, heads, new, 80)
    k, v = torch.randn(2, kv_heads, size, 80), torch.randn(2, kv_heads, size, 80)
    settings = SparseSettings(budget=size, scorer=scorer)
    out, _ = attend_newest(q, view(k, v), 0.1, settings)
    mask = torch.ones(new, size, dtype=torch.bool).tril(size - new)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=0.1, enable_gqa=True
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_compensation_is_exact_where_the_rest_is_uniform():
    # Keys with equal estimates and scores, but different values: mass and mean of the rest are both known.
    torch.manual_seed(0)
    keys = torch.randn(1, 1, 1, 64).expand(1, 1, 50, 64).contiguous()
    values = torch.randn(1, 1, 50, 64)
    cache = view(keys, values, centre=True)
    out, _ = attend_newest(torch.randn(1, 2, 1, 64), cache, 0.125, SparseSettings(budget=20))
    torch.testing.assert_close(out[0, 0, 0], values.mean(2)[0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("new", [1, 4])
def test_compensation_brings_the_output_closer_to_full_attention(new):
    torch.manual_seed(1)
    q, k = torch.randn(1, 8, new, 64), torch.randn(1, 2, 600, 64) + 0.5
    v = torch.randn(1, 2, 600, 64)
    cache = view(k, v)
    full, _ = attend_newest(q, cache, 0.125, SparseSettings(budget=600))
    plain, _ = attend_newest(q, cache, 0.125, SparseSettings(budget=64, compensate=False))
    better, _ = attend_newest(q, cache, 0.125, SparseSettings(budget=64))
    assert (better - full).norm() < 0.7 * (plain - full).norm()


def test_forced_tokens_leave_room_in_a_small_budget():
    assert SparseSettings(budget=128).forced == (4, 16)
    assert SparseSettings(budget=16).forced == (4, 4)
    assert SparseSettings(budget=4, sinks=4, recents=16).forced == (1, 1)
    assert SparseSettings(budget=1).forced == (0, 1)  # the query's own token
    assert SparseSettings(budget=128, sinks=0, recents=0).forced == (0, 1)


def test_tree_sum_adds_halves():
    x = torch.tensor([1e8, 1.0, -1e8, 1.0])
    assert ref.tree_sum(x).item() == 2.0  # (1e8 - 1e8) + (1 + 1); from left to right it would be 1
    torch.testing.assert_close(ref.tree_sum(torch.ones(3, 64)), torch.full((3,), 64.0))


def test_settings_refuse_what_has_no_meaning():
    with pytest.raises(ValueError, match="scorer must be one of dot, manhattan"):
        SparseSettings(scorer="cosine")
    with pytest.raises(ValueError, match="budget must be at least 1"):
        SparseSettings(budget=0)
    cache = make_cache(1, 2, 64, 8, 40, SparseSettings())
    new = torch.randn(1, 2, 1, 64)
    with pytest.raises(ValueError, match="3 query heads do not divide"):
        TorchBackend().decode_step(torch.randn(1, 3, 1, 64), new, new, cache, 1.0, SparseSettings())
    with pytest.raises(ValueError, match="17 new tokens; a step takes 1 to 16"):
        TorchBackend().decode_step(torch.randn(1, 2, 17, 64), new, new, cache, 1.0, SparseSettings())


def plain_codebook(noise: float = 0.0) -> ref.Codebook:
    zeros, ones = torch.zeros(1, 1, 16), torch.ones(1, 1, 16)
    return ref.Codebook(zeros, torch.ones(1, 1), ones, torch.full((1, 1), noise))


def test_exponents_are_units_from_the_origin():
    units = torch.tensor([0.0, 1.0, -1.0, 65536.5, 1e30, -1e30, -torch.inf])
    assert ref.exponents(units).tolist() == [
        ref.ORIGIN + x for x in (0, 1, -1, 65536, ref.ORIGIN - 64, 64 - ref.ORIGIN, 64 - ref.ORIGIN)
    ]


def octaves(*numbers: float) -> Tensor:
    return ref.exponents(torch.tensor(numbers) * ref.UNITS)


def test_the_exponent_of_a_sum_of_powers():
    def found(*numbers):
        return (ref.log_mass(octaves(*numbers)).item() - ref.ORIGIN) / ref.UNITS

    assert found(-40.0) == -40
    assert found(3.0, 3.0) == 4
    assert found(0.0, 0.0, 1.0, 2.0) == 3
    assert found(16.0, *[0.0] * 65536) == 17  # one bin below
    assert found(16.0, 16.0, *[-1.0] * 65536) == 17  # cut off
    assert found(15.0, *[-1.0] * 65536) == 16
    assert found(-1.0, *[-17.0] * 65536) == 0
    none = ref.log_mass(torch.cat([octaves(5.0), torch.full((9,), -1)]))
    assert none.item() == octaves(5.0).item()


def test_the_exponent_of_a_sum_is_close_to_its_logarithm():
    torch.manual_seed(0)
    for spread in (0.1, 1.0, 3.0, 8.0):
        scores = spread * torch.randn(50, 3000)
        found = ref.log_mass(ref.exponents(scores * ref.UNITS_PER_NAT)) - ref.ORIGIN
        error = found / ref.UNITS - scores.logsumexp(-1) / math.log(2)
        assert error.abs().max() < 0.09


def shares_of(rank: Tensor, step: float, scaling: float, error: float, noise: float = 0.0) -> list[bool]:
    """For which of the ranked tokens the share is at least `error`; queries are orthogonal to keys."""
    query = torch.eye(16)[:1].view(1, 1, 1, 16)  # of length 1
    keys = torch.zeros(1, 1, rank.numel(), 16)
    return ref.reaches_error(
        query, keys, rank.view(1, 1, 1, -1), torch.full((1, 1, 1), step), plain_codebook(noise), scaling,
        (0, 0), error,
    ).flatten().tolist()  # fmt: skip


def test_shares_by_hand():
    rank = torch.tensor([1.0, 2.0, 5.0, 8.0]).log()  # shares of 1/16, 2/16, 5/16 and 8/16
    assert shares_of(rank, 1.0, 1.0, 0.05) == [True] * 4
    assert shares_of(rank, 1.0, 1.0, 0.1) == [False, True, True, True]
    assert shares_of(rank, 1.0, 1.0, 0.25) == [False, False, True, True]
    assert shares_of(2 * rank, 2.0, 0.25, 0.25) == [False, False, True, True]  # units of step x scaling
    assert shares_of(rank, 1.0, 1.0, 0.7) == [False] * 4
    assert shares_of(rank, 1.0, 1.0, 0.25, noise=9.0) == [False, False, True, True]  # all are lowered alike
    assert shares_of(rank, 0.0, 1.0, 0.2) == [True] * 4  # a query of zeros: equal shares


def test_sinks_and_recents_are_exact_in_the_sum():
    query = torch.full((1, 1, 1, 16), 0.25)
    keys = torch.zeros(1, 1, 5, 16)
    keys[:, :, 0], keys[:, :, 4] = math.log(8) / 4, math.log(4) / 4
    rank = torch.tensor([50.0, 0.0, 0.0, 0.0, -50.0]).view(1, 1, 1, 5)  # in a sum of 8 + 3 + 4
    for error, expected in ((0.06, True), (0.08, False)):
        found = ref.reaches_error(
            query, keys, rank, torch.ones(1, 1, 1), plain_codebook(), 1.0, (1, 1), error
        )
        assert found[..., 1:4].tolist() == [[[[expected] * 3]]]


@pytest.mark.parametrize(("new", "size"), [(1, 300), (3, 300), (4, 6), (2, 2)])
def test_shares_are_those_of_brute_force(new, size):
    """Except where a share is so close to the error that piecewise-linear logarithms may decide otherwise."""
    torch.manual_seed(size)
    q, k, v = torch.randn(2, 4, new, 64), torch.randn(2, 2, size, 64), torch.randn(2, 2, size, 64)
    cache, scaling, (sinks, recents) = view(k, v), 0.5, (2, 5)
    rotated = ref.rotate_queries(q, cache.codebook)
    query, step = ref.encode_query(rotated)
    rank = ref.rank_by_dot(query, cache.codes, cache.scales)
    estimated = ref.estimated_scores(q, rank * step.unsqueeze(-1), cache.codebook, scaling).double()
    exact = (q.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2)) * scaling
    own, position = ref.own_positions(new, size, q.device), torch.arange(size)
    always = (position < sinks) | (position > own - recents)
    scores = torch.where(always, exact, estimated).masked_fill(position > own, -torch.inf)
    share = (estimated - scores.logsumexp(-1, keepdim=True)).exp()
    for error in (2**-6, 2**-9):
        found = ref.reaches_error(q, k, rank, step, cache.codebook, scaling, (sinks, recents), error)
        clear = (share / error).log2().abs() > 0.1
        assert torch.equal(found[clear], share[clear] >= error)


def test_those_behind_the_first_32_must_reach_the_error():
    scores = torch.arange(40.0, 0, -1).view(1, 1, 1, 40)  # 40 at position 0, 1 at the query's own
    reaching = scores >= 6.5
    # 34 scores are above it, and the own token is forced
    assert ref.select(scores, 36, 0, 1, reaching).flatten().tolist() == [*range(34), 39, 40]
    assert ref.select(scores, 30, 0, 1, reaching).flatten().tolist() == [*range(29), 39]
    reaching = scores >= 20
    assert ref.select(scores, 36, 0, 1, reaching).flatten().tolist() == [*range(31), 39, 40, 40, 40, 40]


def test_what_an_error_leaves_out_goes_to_the_compensation():
    torch.manual_seed(0)
    queries, keys, values = torch.randn(1, 2, 1, 16), torch.randn(1, 1, 64, 16), torch.randn(1, 1, 64, 16)
    cache = view(keys, values)
    every, _ = attend_newest(queries, cache, 0.25, SparseSettings(budget=40, error=1e-12))
    whole, _ = attend_newest(queries, cache, 0.25, SparseSettings(budget=40))
    assert torch.equal(every, whole)
    few, _ = attend_newest(queries, cache, 0.25, SparseSettings(budget=64, error=0.9))
    fewest, _ = attend_newest(
        queries, cache, 0.25, SparseSettings(budget=ref.LEAST_ATTENDED, sinks=4, recents=8)
    )
    forced, _ = attend_newest(queries, cache, 0.25, SparseSettings(budget=64, recents=8, error=0.9))
    torch.testing.assert_close(forced, fewest)
    assert not torch.equal(few, whole)


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0])
def test_an_error_is_a_share(error):
    with pytest.raises(ValueError, match="error must be between 0 and 1"):
        SparseSettings(error=error)
