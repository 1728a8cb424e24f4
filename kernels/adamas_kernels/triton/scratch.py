"""The buffers that the launches of one sparse step share, and their sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from adamas_kernels.contract import ApartCache, LayerCache
from adamas_kernels.packed import dim_of
from adamas_kernels.reference import padded_dim
from adamas_kernels.triton.attend import PART_FACTS
from adamas_kernels.triton.coding import FACTS
from adamas_kernels.triton.launch import next_power
from adamas_kernels.triton.shares import SHARES
from adamas_kernels.triton.shortlist import PLACES

LEAST_GROUPS = 2048  # of tokens; each group keeps its best tokens
MOST_GROUPS = 4096  # unless the budget is larger
MOST_TURNS = 8  # tokens per group, within these limits: more groups spread the estimate over the GPU
GROUPS_PER_TOKEN = 4  # of the budget, so that three of the best tokens are rarely in one group
RANKED_AGAIN = 4096  # tokens of such groups, about, beyond which more groups take less time
MOST_OF_LONG = 16384  # groups for that
LEAST_LIST = 64  # fewest listed tokens, and groups: those of one estimate program
TOKENS_PER_SPLIT = 128  # chosen tokens of each split
MOST_SPLITS = 32  # merged at once


def group_count(device: torch.device, budget: int, capacity: int) -> int:
    """Groups that each query's tokens are dealt to: a power of two, at least the number of listed tokens."""
    if device.type != "cuda":  # few, so that the interpreter sees several turns
        return list_size(budget)
    wanted = max(LEAST_GROUPS, next_power(capacity // MOST_TURNS), next_power(GROUPS_PER_TOKEN * budget))
    wanted = min(MOST_GROUPS, wanted)
    # One of `groups` has three of the best with a probability near (budget / groups)^3 / 6, and then all of
    # its tokens are ranked again.
    several = math.ceil(budget * (capacity / (6 * RANKED_AGAIN)) ** (1 / 3))
    wanted = max(wanted, min(MOST_OF_LONG, next_power(several)))
    return max(list_size(budget), min(next_power(capacity), wanted))


def list_size(budget: int) -> int:
    """The number of listed tokens, from which a selection chooses exactly."""
    return max(LEAST_LIST, next_power(budget + budget // 4))


def split_count(budget: int) -> int:
    """The number of programs that share the chosen tokens of a query."""
    return min(MOST_SPLITS, triton.cdiv(budget, TOKENS_PER_SPLIT))


@dataclass
class Scratch:
    """The buffers that the launches of one step share. One set serves all layers of a model in turn.

    Rows are queries, B x H x N of them.
    """

    words: Tensor  # int32 [rows, P / 4], encoded queries
    facts: Tensor  # float32 [rows, FACTS]
    best: Tensor  # float32 [rows, PLACES, groups], see `shortlist.py`
    turns: Tensor  # int32 [rows, groups]
    masses: Tensor  # float32 [rows, groups]
    shares: Tensor  # int32 [rows, SHARES, groups], masses as integers, if the error is bounded
    sums: Tensor  # int32 [rows, groups], running counts of listed tokens and of groups to re-rank
    looked_at: Tensor  # int32 [rows, groups], the groups to re-rank
    extra_rank: Tensor  # float32 [rows, room], of tokens that are no group's first or second
    extra_at: Tensor  # int32 [rows, room]
    list_rank: Tensor  # float32 [rows, list], of the listed tokens
    list_at: Tensor  # int32 [rows, list]
    again: Tensor  # int32 [rows], how many groups were re-ranked
    chosen_at: Tensor  # int32 [rows, budget]
    rest: Tensor  # float32 [rows, 2], softmax mass of the others and the score that it is relative to
    attended: Tensor  # int32 [rows], how many tokens, if the error is bounded
    parts: Tensor  # float32 [rows, splits, ...]
    place: Tensor  # int32 [rows, budget], for the tally
    score: Tensor  # float32 [rows, budget]

    @classmethod
    def allocate(cls, queries: Tensor, cache: LayerCache | ApartCache, budget: int, groups: int) -> Scratch:
        """Buffers for queries [B, H, N, D] over this cache's capacity."""
        batch, heads, new, dim = queries.shape
        rows = batch * heads * new
        part = 2 * next_power(dim_of(cache.values)) + PART_FACTS.value

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=queries.device)

        return cls(
            words=empty(rows, padded_dim(dim) // 4, dtype=torch.int32),
            facts=empty(rows, FACTS.value),
            best=empty(rows, PLACES.value, groups),
            turns=empty(rows, groups, dtype=torch.int32),
            masses=empty(rows, groups),
            shares=empty(rows, SHARES.value, groups, dtype=torch.int32),
            sums=empty(rows, groups, dtype=torch.int32),
            looked_at=empty(rows, groups, dtype=torch.int32),
            extra_rank=empty(rows, cache.capacity),
            extra_at=empty(rows, cache.capacity, dtype=torch.int32),
            list_rank=empty(rows, list_size(budget)),
            list_at=empty(rows, list_size(budget), dtype=torch.int32),
            again=empty(rows, dtype=torch.int32),
            chosen_at=empty(rows, budget, dtype=torch.int32),
            rest=empty(rows, 2),
            attended=empty(rows, dtype=torch.int32),
            parts=empty(rows, split_count(budget), part),
            place=empty(rows, budget, dtype=torch.int32),
            score=empty(rows, budget),
        )
