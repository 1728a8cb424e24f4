"""Full attention of new tokens on a CPU, where queries that share a KV head are computed together."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.contract import DenseCache
from adamas_kernels.cpu.backend import CpuBackend

TOKENS, DIM = 1100, 40  # more than two segments, and a head_dim that is not a multiple of the vector width


@pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 9, 17])
def test_queries_that_share_a_key_are_computed_as_each_alone(group):
    torch.manual_seed(group)
    backend = CpuBackend()
    old = [torch.randn(1, 2, TOKENS, DIM) for _ in range(2)]
    queries = torch.randn(1, 2 * group, 1, DIM)
    keys, values = torch.randn(1, 2, 1, DIM), torch.randn(1, 2, 1, DIM)

    def step(chosen):
        buffers = [torch.cat((part, torch.full((1, 2, 4, DIM), torch.nan)), 2) for part in old]
        cache = DenseCache(*buffers, None, torch.tensor([TOKENS], dtype=torch.int32))
        return backend.dense_step(chosen, keys, values, cache, DIM**-0.5)[0]

    found = step(queries)
    one_by_one = [step(queries[:, at::group]) for at in range(group)]
    assert torch.equal(found, torch.stack(one_by_one, 2).flatten(1, 2))
    whole = [torch.cat((part, new), 2).double() for part, new in zip(old, (keys, values), strict=True)]
    repeated = [part.repeat_interleave(group, 1) for part in whole]
    wanted = torch.nn.functional.scaled_dot_product_attention(queries.double(), *repeated)
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("dim", [16, 48, 64])  # one vector, three, and pairs of them
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 510, 511, 512, 513])
def test_lengths_around_four_keys_and_a_segment(tokens, dim):
    torch.manual_seed(tokens)
    queries = torch.randn(1, 6, 1, dim)
    whole = [torch.randn(1, 2, tokens + 1, dim) for _ in range(2)]
    buffers = [torch.cat((part[:, :, :-1], torch.full((1, 2, 4, dim), torch.nan)), 2) for part in whole]
    cache = DenseCache(*buffers, None, torch.tensor([tokens], dtype=torch.int32))
    found = CpuBackend().dense_step(queries, *(part[:, :, -1:] for part in whole), cache, dim**-0.5)[0]
    repeated = [part.double().repeat_interleave(3, 1) for part in whole]
    wanted = torch.nn.functional.scaled_dot_product_attention(queries.double(), *repeated)
    assert (found - wanted).abs().max() < 1e-5
