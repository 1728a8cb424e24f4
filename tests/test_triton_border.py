"""The search for a border, `triton/border.py`: in Triton's interpreter here, natively with `-m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from adamas_kernels.triton.border import find_border

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COUNT = tl.constexpr(128)
LOWEST = np.float32(-1e30)

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@triton.jit
def border_kernel(ranks_ptr, ends_ptr, reached, want, limit, out_ptr):
    """out: the border of COUNT ranks, and how many reach it. ends: see `find_border`, low and high."""
    rank = tl.load(ranks_ptr + tl.arange(0, COUNT))
    low, high, none = tl.load(ends_ptr), tl.load(ends_ptr + 1), tl.zeros((), tl.int32)
    found, number, _ = find_border(
        (rank,), ranks_ptr, none, none, low, high, reached, want, limit, low, low, False
    )
    tl.store(out_ptr, found)
    tl.store(out_ptr + 1, number.to(tl.float32))


def border(ranks: np.ndarray, want: int, limit: int) -> tuple[np.float32, int]:
    """The border of ranks, float32, and how many reach it."""
    filled = np.full(COUNT.value, LOWEST, np.float32)
    filled[: len(ranks)] = ranks
    ends = np.array([ranks.min(), np.nextafter(ranks.max(), np.float32(np.inf))], np.float32)
    given, ends = torch.from_numpy(filled).to(DEVICE), torch.from_numpy(ends).to(DEVICE)
    out = torch.zeros(2, device=DEVICE)
    border_kernel[(1,)](given, ends, len(ranks), want, limit, out)
    found, number = out.cpu().numpy()
    return found, int(number)


def neighbours(start: float, counts: dict[int, int]) -> np.ndarray:
    """So many ranks at so many floats after `start`."""
    bits = np.float32(start).view(np.int32)
    return np.concatenate([np.full(n, (bits + at).view(np.float32)) for at, n in counts.items()])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("start", [1.0, -3.0, 1e-30, 700.0])
@pytest.mark.parametrize(
    ("counts", "want", "limit"),
    [
        ({1: 105, 0: 5}, 100, 100),
        ({2: 60, 0: 50}, 55, 55),
        ({1: 40, 0: 70}, 39, 39),
        ({5: 3, 1: 100, 0: 20}, 50, 60),
        ({0: 100, 1: 1, 900: 20}, 22, 22),
    ],
)
def test_ties_at_neighbouring_floats_end_the_search(counts, want, limit, start):
    ranks = neighbours(start, counts)
    found, number = border(ranks, want, limit)
    assert number == (ranks >= found).sum() >= want
    above = (ranks > found).sum()
    assert number <= limit or above < want


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(12))
def test_ranks_of_few_floats(seed):
    """Random numbers of ties at random floats that lie close together."""
    chance = np.random.default_rng(seed)
    kinds = int(chance.integers(2, 6))
    counts = {int(chance.integers(0, 9)): int(chance.integers(1, 26)) for _ in range(kinds)}
    ranks = neighbours(float(chance.normal()), counts)
    want = int(chance.integers(1, len(ranks) + 1))
    limit = want + int(chance.integers(0, 3))
    found, number = border(ranks, want, limit)
    assert number == (ranks >= found).sum() >= want
    assert number <= limit or (ranks > found).sum() < want
