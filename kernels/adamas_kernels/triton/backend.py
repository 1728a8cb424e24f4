"""The operations on GPUs, in Triton. A sparse step takes three launches for a small budget and five for a
large one, without synchronization, and with grids that do not depend on the length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from adamas_kernels.contract import (
    AnyCache,
    AnyWeight,
    ApartCache,
    LayerCache,
    SparseSettings,
    check_step,
    check_unbounded,
)
from adamas_kernels.packed import dim_of, is_packed
from adamas_kernels.reading import BlockMeans, ReadSettings
from adamas_kernels.reference import Codebook, padded_dim
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.prefill import by_length
from adamas_kernels.triton import encode, plane_product
from adamas_kernels.triton.arranging import gate_rows, norm_rows
from adamas_kernels.triton.attend import attend_kernel, attend_once_kernel, merge_kernel, tally_kernel
from adamas_kernels.triton.dense import DenseStep
from adamas_kernels.triton.encode import enter_kernel
from adamas_kernels.triton.estimate import estimate_kernel, estimate_tiles_kernel
from adamas_kernels.triton.experts import Experts, add_chosen
from adamas_kernels.triton.fetch import fetch
from adamas_kernels.triton.grouped import add_grouped
from adamas_kernels.triton.latent import LatentStep, holds_latents
from adamas_kernels.triton.launch import chains, has_ptx, next_power
from adamas_kernels.triton.linear import multiply_vector
from adamas_kernels.triton.packed_rows import append_packed, log_turned
from adamas_kernels.triton.plain_rows import plain_rows
from adamas_kernels.triton.plane_rows import MOST_ROWS, multiply_rows
from adamas_kernels.triton.planes import PlaneWeight
from adamas_kernels.triton.prefill import causal_attention
from adamas_kernels.triton.reading import summarize
from adamas_kernels.triton.rounding import norm_vector
from adamas_kernels.triton.scratch import Scratch, group_count, list_size
from adamas_kernels.triton.select import HELD_GROUPS, select_kernel
from adamas_kernels.triton.sparse_prefill import prefill_sparsely
from adamas_kernels.triton.tile import QUERIES, TOKENS
from adamas_kernels.triton.unpacking import embed, unpack_rows

ESTIMATE_BLOCK = 64  # groups of one estimate program
ESTIMATE_RANKS = 512  # held by such a program at a time; fewer groups for many queries
ESTIMATE_WARPS = 1
SMALLEST_TILED = 64  # padded head_dim whose codes fill a tile
TURNS_AHEAD = 4  # turns whose codes a program on tensor cores loads at once
HELD_WORDS = 64  # words of encoded queries that fit into registers beside everything else
SELECT_WARPS = 8
WIDE_WARPS = 16  # of a selection whose groups do not fit into the registers of so few
WARP_BYTES = 512  # most bytes that one load instruction of a warp reads
ATTEND_BYTES = 32768  # of keys that one attend program can hold
SPLIT_WARPS = 4  # if one program cannot hold all chosen tokens
SPLIT_BYTES = 16384  # of keys that each then holds at a time; less, so that several fit a multiprocessor
MERGE_NUMBERS = 2048  # of the parts that a warp merges
RANK_BLOCK = 256  # tokens that a selection ranks again at a time
LARGE_RANK_BLOCK = 1024  # with a large list, where groups with three of the best tokens are common
LARGE_LIST = 8  # tokens per coordinate: ranking more of few coordinates at a time costs less
STAGES = 5
UNPACKED = 1 << 27  # numbers of a weight that are unpacked at a time
# Choices per expert up to which tokens read experts' bits directly: reading all that often takes as long as
# unpacking.
FEW_READS = 4


def select_warps(groups: int) -> int:
    """Warps of a selection among this many groups."""
    return SELECT_WARPS if groups <= HELD_GROUPS.value else WIDE_WARPS


def attend_block(head_dim: int, itemsize: int, size: int) -> int:
    """Chosen tokens per block of an attend program: those whose keys take `size` bytes."""
    return max(16, min(128, size // (head_dim * itemsize)))


def near_tokens(dim_v: int, warps: int, itemsize: int, tokens: int) -> int:
    """Tokens whose values one load of a warp covers, if each warp loads its own share of the columns."""
    return min(tokens, max(1, WARP_BYTES * warps // (dim_v * itemsize)))


class TritonBackend:
    """Adamas in Triton. Keeps one set of scratch buffers per shape of step, which layers share.

    fast: inline assembly instead of plain arithmetic; chained: overlap the launches of a step; groups: the
    number of groups that tokens are dealt to, a power of two. None chooses by device.
    """

    name = "triton"

    def __init__(
        self,
        fast: bool | None = None,
        chained: bool | None = None,
        groups: int | None = None,
        shared: int | None = None,
    ) -> None:
        self._fast = fast
        self._chained = chained
        self._groups = groups
        self._dense, self._latent = DenseStep(chained), LatentStep(chained, shared)
        self._scratch: dict[tuple[int, ...], Scratch] = {}
        self._again: Tensor | None = None
        self._buffers: dict[tuple[torch.device, torch.dtype, int | None], Tensor] = {}

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`."""
        encode.encode_keys(keys, codebook, codes, scales)

    def read_rows(self, rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
        """See `Backend.read_rows`."""
        return plain_rows(rows, dtype, centre)

    def prefill(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        lengths: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.prefill`."""
        return by_length(causal_attention, queries, keys, values, scaling, lengths, softmax)

    def summarize(self, keys: Tensor, values: Tensor, means: BlockMeans, start: int) -> None:
        """See `Backend.summarize`."""
        summarize(keys, values, means, start)

    def prefill_sparsely(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        means: BlockMeans,
        scaling: float,
        settings: ReadSettings,
        softmax: Softmax = PLAIN,
        computed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.prefill_sparsely`."""
        return prefill_sparsely(queries, keys, values, means, scaling, settings, softmax, computed)

    def dense_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: AnyCache | ApartCache,
        scaling: float,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.dense_step` and `StepsApart`."""
        check_step(queries, keys, values, cache, softmax)
        one = queries.shape[2] == 1 and softmax is PLAIN
        if one and not isinstance(cache, ApartCache) and holds_latents(cache):
            return self._latent(queries, keys, cache, scaling)
        return self._dense(queries, keys, values, cache, scaling, softmax)

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """See `Backend.linear`; not for packed weights."""
        rows = x.numel() // x.shape[-1]
        if isinstance(weight, PlaneWeight):
            if rows == 1:
                return plane_product.multiply_vector(x, weight, bias, chained=self._chained)
            if rows <= MOST_ROWS:
                return multiply_rows(x, weight, bias, self._chained)
            return self._unpacked(x, weight, bias)
        assert isinstance(weight, Tensor)
        return multiply_vector(x, weight, bias) if rows == 1 else F.linear(x, weight, bias)

    def embed(self, tokens: Tensor, weight: PlaneWeight, dtype: torch.dtype) -> Tensor:
        """The rows of tokens [...] as [..., columns]."""
        return embed(weight, tokens, dtype)

    def gated(self, x: Tensor, weight: PlaneWeight) -> Tensor:
        """silu(gate) * up of one row, x [..., columns]: [..., rows / 2]; weight: the gate's rows, then
        equally many of up. Of a few rows only for products that take them, see `gate_rows`.
        """
        if _is_row(x):
            return plane_product.multiply_vector(x, weight, gated=True, chained=self._chained)
        return gate_rows(self.linear(x, weight), self._chained)

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm of one row, x [..., n], or a few, only for products with weights in planes, see
        `norm_vector` and `norm_rows`.
        """
        norm = norm_vector if _is_row(x) else norm_rows
        return norm(x, weight, epsilon, self._chained)

    def mix(self, x: Tensor, experts: Experts, chosen: Tensor, shares: Tensor) -> Tensor:
        """The sum of each token's chosen experts times their shares, [tokens, hidden] in x's dtype. x:
        [tokens, hidden]; chosen: int [tokens, choices]; shares: [tokens, choices].
        """
        if chosen.numel() <= FEW_READS * experts.count:
            return add_chosen(x, experts, chosen, shares, self._chained)
        return add_grouped(x, experts, chosen, shares, lambda count: self._buffer(x, count), UNPACKED)

    def _buffer(self, x: Tensor, count: int) -> Tensor:
        """This many numbers of x's dtype, in one buffer of a stream, shared by all unpacked weights."""
        kind = x.device, x.dtype, torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else None
        buffer = self._buffers.get(kind)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[kind] = x.new_empty(count)
        return buffer[:count]

    def _unpacked(self, x: Tensor, weight: PlaneWeight, bias: Tensor | None) -> Tensor:
        """A product with many rows, unpacking one part of the weight at a time."""
        step = min(weight.rows, max(1, UNPACKED // weight.columns))
        out = []
        for start in range(0, weight.rows, step):
            part = weight.part(start, start + step)
            numbers = self._buffer(x, part.rows * part.columns).view(part.rows, part.columns)
            unpack_rows(part, numbers)
            out.append(F.linear(x, numbers, None if bias is None else bias[start : start + step]))
        return out[0] if len(out) == 1 else torch.cat(out, -1)

    def scratch(self, queries: Tensor, cache: LayerCache | ApartCache, budget: int) -> Scratch:
        """The buffers for a step of this shape."""
        shape = (*queries.shape, cache.keys.shape[1], dim_of(cache.values), cache.capacity, budget)
        found = self._scratch.get(shape)
        if found is None:
            groups = self._groups or group_count(queries.device, budget, cache.capacity)
            found = self._scratch[shape] = Scratch.allocate(queries, cache, budget, groups)
        return found

    def reread(self) -> Tensor | None:
        """How many groups of tokens each query's selection re-ranked in the last step, int32 [B H N] on its
        device.
        """
        return self._again

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache | ApartCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
        stages: int = STAGES,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step` and `StepsApart`. stages: how many of enter, estimate, select, attend and
        merge to launch (select does the work of the last three for a small budget); fewer only for timing.
        """
        check_step(queries, keys, values, cache, softmax)
        check_unbounded(softmax)
        settings, cap, capped = settings.under(softmax), softmax.softcap, softmax.softcap > 0
        queries, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (queries, keys, values))
        batch, heads, new, dim = queries.shape
        kv_heads, capacity = cache.keys.shape[1], cache.capacity
        dim_v = values.shape[3]
        size = padded_dim(dim)
        scratch = self.scratch(queries, cache, settings.budget)
        self._again = scratch.again
        manhattan = settings.scorer == "manhattan"
        mass, bound = settings.compensated, settings.error is not None
        fast = has_ptx() if self._fast is None else self._fast
        chained = chains(queries.device) if self._chained is None else self._chained
        chain = {"launch_pdl": True} if chained else {}
        sinks, recents = settings.forced
        forced = next_power(sinks + recents)
        group = heads // kv_heads
        groups, splits = scratch.best.shape[2], scratch.parts.shape[1]
        new_pad, budget_pad = next_power(new), next_power(settings.budget)
        packed = is_packed(cache.keys.dtype)
        asking, shift = queries, scratch.rest
        if packed:
            assert isinstance(cache, LayerCache)
            turned = append_packed(queries, keys, values, cache)
            asking, shift = turned.queries, turned.shift
        # Bytes in registers of a key's number: those of packed rows become float32, and have scales.
        held = 2 * torch.float32.itemsize if packed else queries.element_size()
        tokens, split_tokens = (attend_block(size, held, most) for most in (ATTEND_BYTES, SPLIT_BYTES))
        hot = cache.hot if isinstance(cache, LayerCache) else None
        if hot is not None and not hot.serves(group * new * settings.budget):
            hot = None
        # Unpacked rows would take too many registers, and others must be fetched between the two.
        once = settings.budget <= tokens and not packed and hot is None
        dim_v_pad = max(16, next_power(dim_v))
        out = torch.empty(batch, heads, new, dim_v, dtype=queries.dtype, device=queries.device)
        lse = torch.empty(batch, heads, new, dtype=torch.float32, device=queries.device)
        learned, sinks_at = softmax.sinks is not None, lse if softmax.sinks is None else softmax.sinks
        codes, book = cache.codes.stride(), cache.codebook
        apart = isinstance(cache, ApartCache)
        places = cache.places if isinstance(cache, ApartCache) else cache.length
        enter_kernel[(kv_heads + heads, batch)](
            queries, keys, values,
            cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum,
            book.mean, book.edge, book.balance, book.noise, cache.length,
            scratch.words, scratch.facts, places,
            *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
            *cache.keys.stride()[:3], *cache.values.stride()[:3],
            codes[0], codes[1], codes[3], codes[2], *cache.scales.stride()[:2],
            scaling, -1.0 if settings.edge is None else settings.edge,
            HEADS=kv_heads, GROUP=group, NEW=new, ROWS=new_pad, D=dim, D_V=dim_v, D_V_PAD=dim_v_pad,
            P=size, LOG_P=size.bit_length() - 1, MANHATTAN=manhattan, CHAINED=chained, APART=apart,
            PACKED=packed, num_warps=max(1, min(8, new_pad * size // 256)),
            enable_fp_fusion=False,  # a fused multiply-add rounds once less than the reference
            **chain,
        )  # fmt: skip
        if stages == 1:
            return out, lse
        what = (
            cache.codes, cache.scales, cache.length, scratch.words, scratch.facts,
            scratch.best, scratch.turns, scratch.masses, scratch.shares,
        )  # fmt: skip
        where = places, codes[0], codes[1], codes[3], *cache.scales.stride()[:2]
        early = chained and recents >= new
        if not manhattan and size >= SMALLEST_TILED and group > 1 and (fast or not queries.is_cuda):
            tiles = 1 if group > QUERIES.value // 2 else 2
            estimate_tiles_kernel[
                (groups // (tiles * TOKENS.value), kv_heads * batch * triton.cdiv(group, QUERIES.value), new)
            ](
                *what, *where, capacity, sinks, recents, cap,
                HEADS=kv_heads, GROUP=group, NEW=new, P=size, GROUPS=groups, TILES=tiles, TURNS=TURNS_AHEAD,
                MASS=mass, BOUND=bound, FAST=fast, CHAINED=chained, EARLY=early, CAPPED=capped, APART=apart,
                num_warps=ESTIMATE_WARPS,
                **chain,
            )  # fmt: skip
        else:
            query_rows = next_power(max(group, 2) if manhattan else group)
            block = max(32, min(ESTIMATE_BLOCK, ESTIMATE_RANKS // query_rows))
            estimate_kernel[(groups // block, kv_heads * batch, new)](
                *what, *where, capacity, sinks, recents, cap,
                HEADS=kv_heads, GROUP=group, NEW=new, ROWS=query_rows, P=size, GROUPS=groups, BLOCK=block,
                MANHATTAN=manhattan, MASS=mass, BOUND=bound, FAST=fast, CHAINED=chained, EARLY=early,
                HELD=query_rows * size // (16 if manhattan else 4) <= HELD_WORDS,
                CAPPED=capped, APART=apart, num_warps=ESTIMATE_WARPS, **chain,
            )  # fmt: skip
        if stages == 2:
            return out, lse
        pairs = heads * batch
        scratched = (
            scratch.sums, scratch.looked_at, scratch.extra_rank, scratch.extra_at,
            scratch.list_rank, scratch.list_at, scratch.again,
        )  # fmt: skip
        listed = list_size(settings.budget)
        choice: dict[str, Any] = dict(
            GROUPS=groups, LIST=listed, BLOCK=LARGE_RANK_BLOCK if listed > LARGE_LIST * size else RANK_BLOCK,
            MANHATTAN=manhattan, MASS=mass,
            FAST=fast, BOUND=bound, FORCED=forced, D=dim, P=size, LOG_P=size.bit_length() - 1, CAPPED=capped,
            APART=apart, num_warps=select_warps(groups), **chain,
        )  # fmt: skip
        if bound:
            choice["enable_fp_fusion"] = False  # exact scores are the reference's, bit for bit
        if once:
            attend_once_kernel[(pairs, new)](
                *what, *scratched, queries, cache.keys, cache.values, cache.value_sum, out, lse,
                scratch.place, scratch.score, scratch.attended, sinks_at, *where,
                *queries.stride()[:3], *cache.keys.stride()[:3], *cache.values.stride()[:3],
                *out.stride()[:3], scaling, cap, settings.least_share, sinks, recents, settings.budget,
                capacity, HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=new_pad, D_V=dim_v,
                D_V_PAD=dim_v_pad, CHAINED=chained, TALLY=tally is not None, WARPS=SELECT_WARPS,
                SINKS=learned,
                NEAR=near_tokens(dim_v_pad, SELECT_WARPS, values.element_size(), choice["LIST"]), **choice,
            )  # fmt: skip
        else:
            select_kernel[(pairs, new)](
                *what, *scratched, scratch.chosen_at, scratch.rest, scratch.attended, asking, cache.keys,
                shift, *where, *asking.stride()[:3], *cache.keys.stride()[:3], scaling, cap,
                settings.least_share, sinks, recents, settings.budget, capacity,
                HEADS=kv_heads, GROUP=group, NEW=new, CHAINED=chained, PACKED=packed, **choice,
            )  # fmt: skip
            if stages == 3:
                return out, lse
            held_keys, held_values, slots = cache.keys, cache.values, (scratch.place,) * 3
            if hot is not None:
                assert isinstance(cache, LayerCache)
                fetch(
                    cache, hot, scratch.chosen_at, scratch.attended, heads, new, settings.budget,
                    (sinks, recents), chained=chained, bound=bound,
                )  # fmt: skip
                held_keys, held_values, slots = hot.keys, hot.values, (hot.place, hot.begin, hot.taken)
            attend_kernel[(pairs, new, splits)](
                asking, held_keys, held_values, cache.length, scratch.chosen_at, scratch.parts,
                scratch.place, scratch.score, scratch.attended, places, shift, *slots,
                *asking.stride()[:3], *held_keys.stride()[:3], *held_values.stride()[:3],
                scaling, cap, sinks, recents, settings.budget, held_keys.shape[2], slots[0].shape[-1],
                HEADS=kv_heads, GROUP=group, NEW=new, D=dim, P=size, D_V=dim_v, D_V_PAD=dim_v_pad,
                TOKENS=split_tokens, SPLITS=splits, CHAINED=chained, TALLY=tally is not None,
                WARPS=SPLIT_WARPS, BOUND=bound, CAPPED=capped, APART=apart, PACKED=packed,
                HOT=hot is not None,
                NEAR=near_tokens(dim_v_pad, SPLIT_WARPS, held_values.element_size(), split_tokens),
                num_warps=SPLIT_WARPS, **chain,
            )  # fmt: skip
            if stages == 4:
                return out, lse
            merge_kernel[(pairs, new)](
                scratch.parts, scratch.rest, cache.values, cache.value_sum, cache.length, out, lse,
                scratch.attended, sinks_at, places, *cache.values.stride()[:3], *out.stride()[:3],
                settings.budget, HEADS=kv_heads, GROUP=group, NEW=new, NEW_PAD=new_pad, D_V=dim_v,
                D_V_PAD=dim_v_pad, SPLITS=splits, SPLITS_PAD=next_power(splits), MASS=mass, CHAINED=chained,
                BOUND=bound, SINKS=learned, APART=apart, PACKED=packed, LOG_TURNED_V=log_turned(dim_v),
                num_warps=max(1, next_power(splits) * dim_v_pad // MERGE_NUMBERS), **chain,
            )  # fmt: skip
        if tally is not None:
            each = tally.stride(0) if batch == 1 and len(tally) == new else 0
            tally_kernel[(pairs, new)](
                scratch.place, scratch.score, lse, cache.length, scratch.attended, tally, places,
                tally.stride(0), each, *tally.stride()[1:], settings.budget, HEADS=heads, NEW=new,
                BUDGET_PAD=budget_pad, BOUND=bound, APART=apart, num_warps=4,
            )  # fmt: skip
        return out, lse


def _is_row(x: Tensor) -> bool:
    """Whether x [..., n] is one row."""
    return x.numel() == x.shape[-1]
