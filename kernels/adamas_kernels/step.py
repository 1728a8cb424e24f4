"""One decode step of a layer in Triton: three launches for a small budget and five for a large one, no
synchronization, grids that do not depend on the length.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from adamas_kernels import encode
from adamas_kernels.attend import (
    PART_FACTS,
    attend_kernel,
    attend_once_kernel,
    merge_kernel,
    tally_kernel,
)
from adamas_kernels.coding import COUNTER_STRIDE, FACTS
from adamas_kernels.encode import enter_kernel
from adamas_kernels.estimate import estimate_kernel
from adamas_kernels.ops import LayerCache, SparseSettings, check_step
from adamas_kernels.reference import Codebook, padded_dim
from adamas_kernels.select import select_kernel

ROOM = 4  # room for candidates, in budgets
LARGE_BUDGET = 512  # from which less room does: more tokens are easier to predict
LARGE_ROOM = 2.5
SMALLEST_ROOM = 256
ESTIMATE_BLOCK = 64  # tokens that one estimate program ranks at a time
ESTIMATE_WARPS = 1
PROGRAMS_PER_SM = 16  # estimate programs, of all KV heads together, for each multiprocessor
HELD_WORDS = 64  # words of encoded queries that fit into registers beside everything else
CROWDED_WORDS = 128  # and those that fit at a price, which pays for many blocks of tokens
MANY_BLOCKS = 16  # for each program
SELECT_WARPS = 16
SELECT_WORDS = 4096  # of 32 positions each, that a select program counts at a time
ATTEND_WARPS = 8
ATTEND_BYTES = 32768  # of keys that one attend program can hold
SPLIT_WARPS = 4  # where one program cannot hold all chosen tokens
SPLIT_BYTES = 16384  # of keys that each then holds at a time; less, so that several fit a multiprocessor
TOKENS_PER_SPLIT = 128  # chosen tokens that each of them attends to
MOST_SPLITS = 32  # that are merged at once
MERGE_WARPS = 4
RANK_BLOCK = 1024  # tokens ranked at a time where the candidates did not do
STAGES = 5
CHAINING_CAPABILITY = 9  # NVIDIA GPUs from Hopper on start a launch before the one before it has ended


def next_power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def room_and_target(budget: int) -> tuple[int, float]:
    """Room for candidates of one query, and how many are aimed at: as many times the budget as the room is
    of them, because too few and too many are equally slow.
    """
    room = max(SMALLEST_ROOM, next_power(int((LARGE_ROOM if budget >= LARGE_BUDGET else ROOM) * budget)))
    return room, math.sqrt(budget * room)


def estimate_programs(device: torch.device, rows: int, capacity: int) -> int:
    """Programs that share the tokens of each of `rows` KV heads and new tokens."""
    blocks = triton.cdiv(capacity, ESTIMATE_BLOCK)
    if device.type != "cuda":
        return min(blocks, 3)
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(blocks, PROGRAMS_PER_SM * units // rows))


def holds_queries(words: int, capacity: int, programs: int) -> bool:
    """Whether estimate programs keep their encoded queries in registers."""
    many = capacity >= MANY_BLOCKS * programs * ESTIMATE_BLOCK
    return words <= (CROWDED_WORDS if many else HELD_WORDS)


def attend_block(head_dim: int, itemsize: int, size: int) -> int:
    """Chosen tokens whose keys take `size` bytes, a block of an attend program."""
    return max(16, min(128, size // (head_dim * itemsize)))


def split_count(budget: int) -> int:
    """Programs that share the chosen tokens of a query."""
    return min(MOST_SPLITS, triton.cdiv(budget, TOKENS_PER_SPLIT))


def has_ptx() -> bool:
    """Whether kernels may hold NVIDIA's assembly: not on AMD, and not in Triton's interpreter."""
    return torch.version.hip is None and os.environ.get("TRITON_INTERPRET") != "1"


def chains(device: torch.device) -> bool:
    """Whether launches on this device can overlap (programmatic dependent launch)."""
    if device.type != "cuda" or not has_ptx():
        return False
    return torch.cuda.get_device_capability(device)[0] >= CHAINING_CAPABILITY


@dataclass
class Scratch:
    """What the launches of one step hand to each other. One set serves all layers of a model in turn.

    Rows are queries, B x H x N of them.
    """

    words: Tensor  # int32 [rows, P / 4], encoded queries
    facts: Tensor  # float32 [rows, FACTS]
    rank: Tensor  # float32 [rows, room], candidates
    position: Tensor  # int32 [rows, room]
    count: Tensor  # int32 [rows, COUNTER_STRIDE], the first of each is how many candidates were found
    mass: Tensor  # float32 [rows, programs of the estimate]
    ranks: Tensor  # float32 [rows, capacity], for the uncommon case
    chosen_at: Tensor  # int32 [rows, room]
    chosen_rank: Tensor  # float32 [rows, room]
    marks: Tensor  # int32 [rows, 2, capacity / 32], to order the chosen by position
    rest: Tensor  # float32 [rows, 2], softmax mass of the others and the score that it is relative to
    parts: Tensor  # float32 [rows, splits, ...]
    place: Tensor  # int32 [rows, room], for the tally
    score: Tensor  # float32 [rows, room]

    @classmethod
    def allocate(cls, queries: Tensor, cache: LayerCache, budget: int) -> Scratch:
        """Buffers for queries [B, H, N, D] over this cache's capacity."""
        batch, heads, new, dim = queries.shape
        kv_heads, capacity = cache.keys.shape[1], cache.capacity
        rows = batch * heads * new
        room, _ = room_and_target(budget)
        programs = estimate_programs(queries.device, batch * kv_heads * new, capacity)
        part = 2 * next_power(cache.values.shape[3]) + PART_FACTS.value

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=queries.device)

        return cls(
            words=empty(rows, padded_dim(dim) // 4, dtype=torch.int32),
            facts=empty(rows, FACTS.value),
            rank=empty(rows, room),
            position=empty(rows, room, dtype=torch.int32),
            count=empty(rows, COUNTER_STRIDE.value, dtype=torch.int32),
            mass=empty(rows, programs),
            ranks=empty(rows, capacity),
            chosen_at=empty(rows, room, dtype=torch.int32),
            chosen_rank=empty(rows, room),
            marks=empty(rows, 2, triton.cdiv(capacity, 32), dtype=torch.int32),
            rest=empty(rows, 2),
            parts=empty(rows, split_count(budget), part),
            place=empty(rows, room, dtype=torch.int32),
            score=empty(rows, room),
        )


class TritonBackend:
    """Adamas in Triton. Keeps one set of scratch buffers for each shape of step, so that layers share them.

    fast: inline assembly in place of plain arithmetic; chained: overlap the launches of a step. Both are
    chosen by the device where they are None.
    """

    name = "triton"

    def __init__(self, fast: bool | None = None, chained: bool | None = None) -> None:
        self._fast = fast
        self._chained = chained
        self._scratch: dict[tuple[int, ...], Scratch] = {}

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`."""
        encode.encode_keys(keys, codebook, codes, scales)

    def scratch(self, queries: Tensor, cache: LayerCache, budget: int) -> Scratch:
        """The buffers for a step of this shape."""
        key = (*queries.shape, cache.keys.shape[1], cache.values.shape[3], budget)
        found = self._scratch.get(key)
        if found is None or found.ranks.shape[1] != cache.capacity:
            found = self._scratch[key] = Scratch.allocate(queries, cache, budget)
        return found

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        stages: int = STAGES,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`. stages: how many of enter, estimate, select, attend and merge to launch
        (attend does the work of the last three for a small budget); fewer only to time them.
        """
        check_step(queries, keys, values, cache)
        queries, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, keys, values))
        batch, heads, new, dim = queries.shape
        kv_heads, capacity = cache.keys.shape[1], cache.capacity
        dim_v = values.shape[3]
        size = padded_dim(dim)
        scratch = self.scratch(queries, cache, settings.budget)
        threshold = cache.predicted(heads)
        manhattan = settings.scorer == "manhattan"
        mass = settings.compensated
        fast = has_ptx() if self._fast is None else self._fast
        chained = chains(queries.device) if self._chained is None else self._chained
        chain = {"launch_pdl": True} if chained else {}
        sinks, recents = settings.forced
        group = heads // kv_heads
        query_rows = next_power(max(group, 2) if manhattan else group)
        query_words = query_rows * size // (16 if manhattan else 4)
        room, target = room_and_target(settings.budget)
        programs, splits = scratch.mass.shape[1], scratch.parts.shape[1]
        new_pad, budget_pad = next_power(new), next_power(settings.budget)
        tokens, split_tokens = (
            attend_block(size, queries.element_size(), held) for held in (ATTEND_BYTES, SPLIT_BYTES)
        )
        once = settings.budget <= tokens
        dim_v_pad = max(16, next_power(dim_v))
        out = torch.empty(batch, heads, new, dim_v, dtype=queries.dtype, device=queries.device)
        lse = torch.empty(batch, heads, new, dtype=torch.float32, device=queries.device)
        codes, book = cache.codes.stride(), cache.codebook
        enter_kernel[(kv_heads + heads, batch)](
            queries, keys, values,
            cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum,
            book.mean, book.edge, book.balance, book.noise, cache.length,
            scratch.words, scratch.facts, threshold, scratch.count,
            *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
            *cache.keys.stride()[:3], *cache.values.stride()[:3],
            codes[0], codes[1], codes[3], codes[2], *cache.scales.stride()[:2],
            scaling, -1.0 if settings.edge is None else settings.edge,
            HEADS=kv_heads, GROUP=group, NEW=new, ROWS=new_pad, D=dim, D_V=dim_v, D_V_PAD=dim_v_pad,
            P=size, LOG_P=size.bit_length() - 1, MANHATTAN=manhattan, CHAINED=chained,
            num_warps=max(1, min(8, new_pad * size // 256)),
            enable_fp_fusion=False,  # a fused multiply-add rounds once less than the reference
        )  # fmt: skip
        if stages == 1:
            return out, lse
        estimate_kernel[(programs, kv_heads * batch, new)](
            cache.codes, cache.scales, cache.length, scratch.words, scratch.facts,
            scratch.rank, scratch.position, scratch.count, scratch.mass,
            codes[0], codes[1], codes[3], *cache.scales.stride()[:2], capacity, sinks, recents,
            HEADS=kv_heads, GROUP=group, NEW=new, ROWS=query_rows, P=size, ROOM=room,
            BLOCK=min(ESTIMATE_BLOCK, next_power(capacity + 1) // 2),
            MANHATTAN=manhattan, MASS=mass, FAST=fast, CHAINED=chained, EARLY=chained and recents >= new,
            HELD=holds_queries(query_words, capacity, programs),
            num_warps=ESTIMATE_WARPS, **chain,
        )  # fmt: skip
        if stages == 2:
            return out, lse
        pairs = heads * batch
        if once:
            attend_once_kernel[(pairs, new)](
                queries, cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum, cache.length,
                scratch.words, scratch.facts, scratch.rank, scratch.position, scratch.count, scratch.mass,
                threshold, scratch.ranks, scratch.chosen_at, scratch.chosen_rank, out, lse,
                scratch.place, scratch.score,
                *queries.stride()[:3], *cache.keys.stride()[:3], *cache.values.stride()[:3],
                codes[0], codes[1], codes[3], *cache.scales.stride()[:2], *out.stride()[:3],
                capacity, scaling, sinks, recents, settings.budget, target, programs,
                HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=new_pad, D=dim, P=size, D_V=dim_v,
                D_V_PAD=dim_v_pad, ROOM=room, BUDGET_PAD=budget_pad, PROGRAMS_PAD=next_power(programs),
                BLOCK=RANK_BLOCK, TOKENS=tokens,
                MANHATTAN=manhattan, MASS=mass, FAST=fast, CHAINED=chained, TALLY=tally is not None,
                num_warps=ATTEND_WARPS, **chain,
            )  # fmt: skip
        else:
            select_kernel[(pairs, new)](
                cache.codes, cache.scales, cache.length, scratch.words, scratch.facts,
                scratch.rank, scratch.position, scratch.count, scratch.mass, threshold,
                scratch.ranks, scratch.chosen_at, scratch.chosen_rank, scratch.marks, scratch.rest,
                codes[0], codes[1], codes[3], *cache.scales.stride()[:2],
                capacity, sinks, recents, settings.budget, target, programs,
                HEADS=kv_heads, GROUP=group, NEW=new, P=size, ROOM=room, BUDGET_PAD=budget_pad,
                PROGRAMS_PAD=next_power(programs), BLOCK=RANK_BLOCK,
                WORDS=min(SELECT_WORDS, next_power(scratch.marks.shape[2])),
                MANHATTAN=manhattan, MASS=mass, FAST=fast, CHAINED=chained,
                num_warps=SELECT_WARPS, **chain,
            )  # fmt: skip
            if stages == 3:
                return out, lse
            attend_kernel[(pairs, new, splits)](
                queries, cache.keys, cache.values, cache.length, scratch.chosen_at, scratch.parts,
                scratch.place, scratch.score,
                *queries.stride()[:3], *cache.keys.stride()[:3], *cache.values.stride()[:3],
                scaling, sinks, recents, settings.budget,
                HEADS=kv_heads, GROUP=group, NEW=new, D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad,
                ROOM=room, TOKENS=split_tokens, SPLITS=splits, CHAINED=chained, TALLY=tally is not None,
                num_warps=SPLIT_WARPS, **chain,
            )  # fmt: skip
            if stages == 4:
                return out, lse
            merge_kernel[(pairs, new)](
                scratch.parts, scratch.rest, cache.values, cache.value_sum, cache.length, out, lse,
                *cache.values.stride()[:3], *out.stride()[:3], settings.budget,
                HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=new_pad, D_V=dim_v, D_V_PAD=dim_v_pad,
                SPLITS=splits, SPLITS_PAD=next_power(splits), MASS=mass, CHAINED=chained,
                num_warps=MERGE_WARPS, **chain,
            )  # fmt: skip
        if tally is not None:
            tally_kernel[(pairs, new)](
                scratch.place, scratch.score, lse, cache.length, tally, *tally.stride(), settings.budget,
                HEADS=heads, NEW=new, ROOM=room, BUDGET_PAD=budget_pad,
                num_warps=4,
            )  # fmt: skip
        return out, lse
