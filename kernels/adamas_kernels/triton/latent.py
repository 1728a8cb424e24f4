"""Full attention of one new token to latents (multi-head latent attention), of which one head is kept.

As in `dense.py`, two launches that do not depend on the length, which lies on the device. A latent is read
once: it is the key, with its rotary part beside it, and the value, so that the halves of one product lie in
registers where the usual kernel would need a key of twice its size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from adamas_kernels.contract import AnyCache
from adamas_kernels.triton.coding import LOWEST
from adamas_kernels.triton.dense import LEAST_ROWS
from adamas_kernels.triton.dense_parts import FACTS, LOG2_E, join_kernel
from adamas_kernels.triton.launch import chains, next_power, shared_memory

MOST_SPLITS = 64
LEAST_SHARED = 100 << 10  # bytes of shared memory that every GPU served has for a program


@dataclass(frozen=True)
class LatentTiles:
    """How a step is divided: query heads of one program, latents that it holds at a time, blocks of them in
    flight, warps. shared: bytes of shared memory for each byte of a latent.
    """

    rows: int
    block: int
    stages: int
    warps: int
    shared: int


# The fastest first, for 128 heads over latents of 512 and 64 (docs/measure_families_gpu.py). Hopper takes
# queries from shared memory, others from registers.
TILES = (LatentTiles(64, 64, 2, 8, 192), LatentTiles(32, 32, 2, 8, 66), LatentTiles(16, 16, 1, 4, 34))


@triton.jit
def latent_kernel(
    query_ptr, new_ptr, kept_ptr, value_sum_ptr, length_ptr, part_ptr,
    query_b, query_h, new_b, kept_b, kept_n, scale, splits,
    HEADS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr,
    ROTARY: tl.constexpr, ROTARY_PAD: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Program (share of the tokens, batch, ROWS of its query heads); leaves part [B, H, splits, 2 +
    RANK_PAD].

    The first share begins with the new token, which its first rows append to kept and value_sum. scale: of
    products, in powers of two. CHAINED: the launch after it may start.
    """
    split, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column, turned = tl.arange(0, RANK_PAD), tl.arange(0, ROTARY_PAD)
    real, inside, turning = row < HEADS, column < RANK, turned < ROTARY
    kept = kept_ptr + batch * kept_b
    length = tl.load(length_ptr + batch)
    query = query_ptr + batch * query_b + row.to(tl.int64) * query_h
    q = tl.load(query[:, None] + column[None, :], mask=real[:, None] & inside[None, :], other=0.0)
    turned_q = tl.load(
        query[:, None] + RANK + turned[None, :], mask=real[:, None] & turning[None, :], other=0.0
    )
    highest = tl.full((ROWS,), LOWEST, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, RANK_PAD), tl.float32)
    if split == 0:
        new = new_ptr + batch * new_b
        latent = tl.load(new + column, mask=inside, other=0.0)
        rotary = tl.load(new + RANK + turned, mask=turning, other=0.0)
        if tl.program_id(2) == 0:
            place = kept + length.to(tl.int64) * kept_n
            tl.store(place + column, latent, mask=inside)
            tl.store(place + RANK + turned, rotary, mask=turning)
            total = value_sum_ptr + batch * RANK + column
            tl.store(total, tl.load(total, mask=inside, other=0.0) + latent.to(tl.float32), mask=inside)
        product = tl.sum(q.to(tl.float32) * latent.to(tl.float32)[None, :], axis=1)
        product += tl.sum(turned_q.to(tl.float32) * rotary.to(tl.float32)[None, :], axis=1)
        highest = product * scale
        weight += 1.0
        weighted += latent.to(tl.float32)[None, :]
    share = tl.cdiv(tl.cdiv(length, BLOCK), splits) * BLOCK
    for start in tl.range(split * share, tl.minimum(split * share + share, length), BLOCK, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK)
        there = at < length
        token = kept + at.to(tl.int64)[:, None] * kept_n
        latents = tl.load(token + column[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        rotary = tl.load(token + RANK + turned[None, :], mask=there[:, None] & turning[None, :], other=0.0)
        product = tl.dot(q, tl.trans(latents), input_precision=PRECISION)
        product = tl.dot(turned_q, tl.trans(rotary), product, input_precision=PRECISION)
        score = tl.where(there[None, :], product * scale, LOWEST)
        higher = tl.maximum(highest, tl.max(score, axis=1))
        p = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        weight = weight * fade + tl.sum(p, axis=1)
        weighted = tl.dot(p.to(latents.dtype), latents, weighted * fade[:, None], input_precision=PRECISION)
        highest = higher
    if CHAINED:
        gdc_launch_dependents()
    part = part_ptr + ((batch * HEADS + row) * splits + split) * (RANK_PAD + FACTS)
    tl.store(part, highest, mask=real)
    tl.store(part + 1, weight, mask=real)
    tl.store(part[:, None] + FACTS + column[None, :], weighted, mask=real[:, None])


def holds_latents(cache: AnyCache) -> bool:
    """Whether the values of a cache are the beginnings of its keys, of one head."""
    keys, values = cache.keys, cache.values
    shared = keys.data_ptr() == values.data_ptr() and keys.stride() == values.stride()
    return shared and keys.shape[1] == 1 and keys.shape[3] > values.shape[3]


class LatentStep:
    """Appends a token's latent and attends fully to all of them. Keeps a buffer for the parts of each shape.

    chained: overlap the two launches; shared: bytes of shared memory of a program; both told by the device
    where they are None.
    """

    def __init__(self, chained: bool | None = None, shared: int | None = None) -> None:
        self._chained, self._shared = chained, shared
        self._parts: dict[tuple[int, ...], Tensor] = {}

    def __call__(
        self, queries: Tensor, new: Tensor, cache: AnyCache, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Sums of latents [B, H, 1, R] from queries [B, H, 1, R + P], after a token's latent with its rotary
        part, [B, 1, 1, R + P], was appended to the cache, whose values are the first R of its keys; and the
        log-sum-exp of scores, float32 [B, H, 1].
        """
        queries, new = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, new))
        batch, heads, _, width = queries.shape
        rank = cache.values.shape[3]
        rank_pad, rotary_pad = (max(16, next_power(size)) for size in (rank, width - rank))
        tiles = self._tiles(queries.device, heads, rank_pad + rotary_pad, queries.element_size())
        parts_of_heads = triton.cdiv(heads, tiles.rows)
        splits = self._splits(
            queries.device, batch * parts_of_heads, triton.cdiv(cache.capacity, tiles.block)
        )
        parts = self._part(queries.device, batch, heads, splits, rank_pad + FACTS.value)
        chained = chains(queries.device) if self._chained is None else self._chained
        out = queries.new_empty(batch, heads, 1, rank)
        lse = torch.empty(batch, heads, 1, dtype=torch.float32, device=queries.device)
        latent_kernel[(splits, batch, parts_of_heads)](
            queries, new, cache.keys, cache.value_sum, cache.length, parts,
            *queries.stride()[:2], new.stride(0), cache.keys.stride(0), cache.keys.stride(2),
            scaling * LOG2_E.value, splits,
            HEADS=heads, ROWS=tiles.rows, RANK=rank, RANK_PAD=rank_pad, ROTARY=width - rank,
            ROTARY_PAD=rotary_pad, BLOCK=tiles.block, STAGES=tiles.stages,
            PRECISION="ieee" if queries.dtype == torch.float32 else "tf32", CHAINED=chained,
            num_warps=tiles.warps,
        )  # fmt: skip
        join_kernel[(batch * heads,)](
            parts, out, lse, lse, splits,
            HEADS=heads, NEW=1, D_V=rank, D_V_PAD=rank_pad, SPLITS=next_power(splits), SINKS=False,
            CHAINED=chained, PACKED=False, LOG_TURNED=0,
            num_warps=8, **({"launch_pdl": True} if chained else {}),
        )  # fmt: skip
        return out, lse

    def _tiles(self, device: torch.device, heads: int, width: int, item: int) -> LatentTiles:
        """The fastest that fit, with no more rows than heads need."""
        shared = self._shared
        if shared is None:
            shared = shared_memory(device) if device.type == "cuda" else LEAST_SHARED
        fitting = (tiles for tiles in TILES if tiles.shared * width * item <= shared)
        tiles = next(fitting, TILES[-1])
        return replace(tiles, rows=min(tiles.rows, max(LEAST_ROWS, next_power(heads))))

    def _part(self, device: torch.device, *shape: int) -> Tensor:
        if shape not in self._parts:
            self._parts[shape] = torch.empty(shape, dtype=torch.float32, device=device)
        return self._parts[shape]

    @staticmethod
    def _splits(device: torch.device, rows: int, blocks: int) -> int:
        """Shares of the tokens: all programs together fill the device once."""
        if device.type != "cuda":
            return min(blocks, 3)
        units = torch.cuda.get_device_properties(device).multi_processor_count
        return max(1, min(blocks, MOST_SPLITS, units // rows))
