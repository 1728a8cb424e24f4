"""One decode step of a layer in Triton: three launches, no synchronization, grids that do not depend on the
length.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from adamas_kernels.attend import PART_FACTS, attend_kernel, merge_kernel
from adamas_kernels.coding import FACTS
from adamas_kernels.encode import enter_kernel
from adamas_kernels.estimate import estimate_kernel
from adamas_kernels.ops import LayerCache, SparseSettings
from adamas_kernels.reference import padded_dim

TARGET = 2.0  # candidates aimed at, in budgets
ROOM = 4  # room for candidates, in budgets
SMALLEST_ROOM = 256
TOKENS_PER_SPLIT = 256  # chosen tokens that one program attends to
ESTIMATE_RANKS = 2048  # ranks that one estimate program computes
ESTIMATE_WARPS = 4
ATTEND_WARPS = 8
ATTEND_BYTES = 32768  # of keys that one attend program holds at a time
RANK_BLOCK = 1024  # tokens ranked at a time where the candidates did not do


def next_power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def estimate_block(group: int) -> int:
    """Tokens that one estimate program ranks, for so many query heads each."""
    return max(128, min(1024, ESTIMATE_RANKS // next_power(group)))


def attend_block(head_dim: int, itemsize: int) -> int:
    """Chosen tokens that one attend program holds at a time."""
    return max(16, min(128, ATTEND_BYTES // (head_dim * itemsize)))


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU and without inline assembly."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass
class Scratch:
    """What the launches of one step hand to each other. One set serves all layers of a model in turn.

    Rows are queries, B x H x N of them.
    """

    words: Tensor  # int32 [rows, P / 4], encoded queries
    facts: Tensor  # float32 [rows, FACTS]
    rank: Tensor  # float32 [rows, room], candidates
    position: Tensor  # int32 [rows, room]
    count: Tensor  # int32 [rows], candidates found
    mass: Tensor  # float32 [rows, blocks of the estimate]
    ranks: Tensor  # float32 [rows, capacity], for the uncommon case
    chosen: Tensor  # int32 [rows, room]
    parts: Tensor  # float32 [rows, splits, ...]
    lse: Tensor  # float32 [rows]

    @classmethod
    def allocate(cls, queries: Tensor, cache: LayerCache, budget: int) -> Scratch:
        """Buffers for queries [B, H, N, D] over this cache's capacity."""
        batch, heads, new, dim = queries.shape
        kv_heads, capacity = cache.keys.shape[1:3]
        rows = batch * heads * new
        room = max(SMALLEST_ROOM, next_power(ROOM * budget))
        splits = next_power(triton.cdiv(budget, TOKENS_PER_SPLIT))
        blocks = triton.cdiv(capacity, estimate_block(heads // kv_heads))
        part = 2 * next_power(cache.values.shape[3]) + PART_FACTS.value

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=queries.device)

        return cls(
            words=empty(rows, padded_dim(dim) // 4, dtype=torch.int32),
            facts=empty(rows, FACTS.value),
            rank=empty(rows, room),
            position=empty(rows, room, dtype=torch.int32),
            count=empty(rows, dtype=torch.int32),
            mass=empty(rows, blocks),
            ranks=empty(rows, capacity),
            chosen=empty(rows, room, dtype=torch.int32),
            parts=empty(rows, splits, part),
            lse=empty(rows),
        )


def decode_step(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: LayerCache,
    threshold: Tensor,
    scratch: Scratch,
    scaling: float,
    settings: SparseSettings,
    fast: bool | None = None,
    stages: int = 3,
) -> tuple[Tensor, Tensor]:
    """Append keys and values [B, K, N, D] at `cache.length` and attend from queries [B, H, N, D].

    threshold: float32 [B, H], this layer's own, kept from step to step; start it at LOWEST.
    `cache.length` (int32 [1], on the device) is the number of tokens before the step; the caller advances it.
    stages: how many of the three launches to make; fewer only to time them.
    Returns the output [B, H, N, D] in the queries' dtype and the log-sum-exp float32 [B, H, N].
    """
    batch, heads, new, dim = queries.shape
    kv_heads, capacity = cache.keys.shape[1:3]
    dim_v = values.shape[3]
    size = padded_dim(dim)
    manhattan = settings.scorer == "manhattan"
    mass = settings.compensate and not manhattan
    fast = not interpreted() if fast is None else fast
    sinks, recents = settings.forced
    group = heads // kv_heads
    room, blocks = scratch.rank.shape[1], scratch.mass.shape[1]
    splits = scratch.parts.shape[1]
    new_pad = next_power(new)
    dim_v_pad = max(16, next_power(dim_v))
    out = torch.empty(batch, heads, new, dim_v, dtype=queries.dtype, device=queries.device)
    codes = cache.codes.stride()
    enter_kernel[(kv_heads + heads, batch)](
        queries, keys, values,
        cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum,
        cache.codebook.mean, cache.codebook.edge, cache.length,
        scratch.words, scratch.facts, threshold, scratch.count,
        *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        *cache.keys.stride()[:3], *cache.values.stride()[:3],
        codes[0], codes[1], codes[3], codes[2], *cache.scales.stride()[:2],
        scaling, -1.0 if settings.edge is None else settings.edge,
        HEADS=kv_heads, GROUP=group, NEW=new, ROWS=new_pad, D=dim, D_V=dim_v, D_V_PAD=dim_v_pad,
        P=size, LOG_P=size.bit_length() - 1, MANHATTAN=manhattan,
        num_warps=max(1, min(8, new_pad * size // 256)),
        enable_fp_fusion=False,  # a fused multiply-add rounds once less than the reference
    )  # fmt: skip
    if stages == 1:
        return out, scratch.lse.view(batch, heads, new)
    estimate_kernel[(blocks, kv_heads * batch, new)](
        cache.codes, cache.scales, cache.length, scratch.words, scratch.facts,
        scratch.rank, scratch.position, scratch.count, scratch.mass,
        codes[0], codes[1], codes[3], *cache.scales.stride()[:2], sinks, recents,
        HEADS=kv_heads, GROUP=group, NEW=new, ROWS=next_power(max(group, 2) if manhattan else group), P=size,
        ROOM=room, BLOCK=estimate_block(group), MANHATTAN=manhattan, MASS=mass, FAST=fast,
        num_warps=ESTIMATE_WARPS,
    )  # fmt: skip
    if stages == 2:
        return out, scratch.lse.view(batch, heads, new)
    attend_kernel[(heads * batch, new, splits)](
        queries, cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum, cache.length,
        scratch.words, scratch.facts, scratch.rank, scratch.position, scratch.count, scratch.mass, threshold,
        scratch.ranks, scratch.chosen, scratch.parts, out, scratch.lse,
        *queries.stride()[:3], *cache.keys.stride()[:3], *cache.values.stride()[:3],
        codes[0], codes[1], codes[3], *cache.scales.stride()[:2], *out.stride()[:3],
        capacity, scaling, sinks, recents, settings.budget, TARGET * settings.budget, blocks,
        HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=new_pad, D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad,
        ROOM=room, BLOCKS_PAD=next_power(blocks), BLOCK=RANK_BLOCK,
        TOKENS=attend_block(size, queries.element_size()),
        SPLITS=splits, MANHATTAN=manhattan, MASS=mass, FAST=fast,
        num_warps=ATTEND_WARPS,
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(heads * batch, new)](
            scratch.parts, cache.values, cache.value_sum, cache.length, out, scratch.lse,
            *cache.values.stride()[:3], *out.stride()[:3], settings.budget,
            HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=new_pad, D_V=dim_v, D_V_PAD=dim_v_pad,
            SPLITS=splits, MASS=mass,
            num_warps=4,
        )  # fmt: skip
    return out, scratch.lse.view(batch, heads, new)
