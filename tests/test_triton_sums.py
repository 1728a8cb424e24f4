"""Sums over the GPUs of one host: in Triton's interpreter here, natively with `-m gpu`."""

from __future__ import annotations

import pytest
import torch
from adamas_kernels.triton.sums import BLOCK, SLOTS, Sums

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAPACITY = 4 * BLOCK
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


def ends(ranks: int) -> tuple[list[Sums], list[torch.Tensor]]:
    """All ranks' ends, and their inboxes, on one device."""
    inboxes = [
        torch.zeros(SLOTS.value, ranks, CAPACITY, dtype=torch.int64, device=DEVICE) for _ in range(ranks)
    ]
    return [Sums(rank, inboxes) for rank in range(ranks)], inboxes


def deliver(numbers: torch.Tensor, sender: int, inbox: torch.Tensor, turn: int) -> None:
    """What another rank's launch writes into an inbox, since one device runs them one after the other."""
    bits = numbers.float().view(torch.int32).long() & 0xFFFFFFFF
    inbox[turn % 2, sender, : numbers.numel()] = turn << 32 | bits


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_rank_gets_the_same_sums(ranks, dtype):
    torch.manual_seed(0)
    sums, inboxes = ends(ranks)
    for turn, count in enumerate((BLOCK, 5, BLOCK - 7, 5, 1), start=1):
        brought = [torch.randn(count, device=DEVICE, dtype=dtype) for _ in range(ranks)]
        for sender, numbers in enumerate(brought):
            for inbox in inboxes:
                deliver(numbers, sender, inbox, turn)
        wanted = sum(x.double() for x in brought)
        found = []
        for rank, one in enumerate(sums):
            mine = brought[rank].clone()
            one.add(mine)
            found.append(mine)
        assert all(torch.equal(found[0], other) for other in found[1:])
        # The interpreter cuts off digits where a GPU rounds.
        torch.testing.assert_close(found[0].double(), wanted, rtol=2**-7, atol=1e-6)


def test_a_rank_sends_to_all_and_leaves_other_numbers_alone():
    sums, inboxes = ends(2)
    for inbox in inboxes:
        deliver(torch.full((BLOCK + 3,), 2.5, device=DEVICE), 0, inbox, 1)
    x = torch.full((CAPACITY,), 1.0, device=DEVICE)
    sums[1].add(x[: BLOCK + 3])
    assert torch.equal(x[: BLOCK + 3], torch.full((BLOCK + 3,), 3.5, device=DEVICE))
    assert torch.equal(x[BLOCK + 3 :], torch.ones(CAPACITY - BLOCK - 3, device=DEVICE))
    one = torch.tensor(1.0).view(torch.int32).item()
    for inbox in inboxes:
        assert (inbox[1, 1, : BLOCK + 3] == (1 << 32 | one)).all()
        assert (inbox[1, 1, BLOCK + 3 :] == 0).all()


def test_waiting_for_a_rank_that_has_ended_can_be_stopped():
    sums, _ = ends(2)
    sums[0].stop()
    sums[0].add(torch.ones(3, device=DEVICE))  # would wait forever
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
