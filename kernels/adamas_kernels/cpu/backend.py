"""The CPU backend: one Python call to one compiled function per layer and step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adamas_kernels.blocks import BlockWeight
from adamas_kernels.contract import AnyCache, AnyWeight, LayerCache, SparseSettings, check_unbounded
from adamas_kernels.cpu import between, prefill, reading
from adamas_kernels.cpu import linear as products
from adamas_kernels.cpu.decoder import Decoder
from adamas_kernels.cpu.dense import DenseStages, build_dense
from adamas_kernels.cpu.encode import SHARE, build_encode
from adamas_kernels.cpu.features import MULTIPLIES_BFLOAT16
from adamas_kernels.cpu.floats import KINDS
from adamas_kernels.cpu.lanes import LANES
from adamas_kernels.cpu.launch import Layer, Step, begin, readable
from adamas_kernels.cpu.product import Form, available_forms
from adamas_kernels.cpu.records import (
    CHUNK,
    SEGMENT,
    Arena,
    dense_segments,
    groups_of_segment,
    row_kinds,
)
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.step import Stages, build_stages, build_tally
from adamas_kernels.cpu.strips import multiplies
from adamas_kernels.packed import read
from adamas_kernels.reading import BlockMeans, ReadSettings, summarize
from adamas_kernels.reference import Codebook, padded_dim
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.torch.prefill import by_length, joined, within_window
from adamas_kernels.weights import DecoderWeights

FEW_ROWS = 4  # up to this many, one product per row is faster than unpacking the weight


class CpuBackend:
    """Adamas in functions that numba compiles for this CPU.

    announce: called with one line before anything is compiled; compiled code is kept on disk.
    form: the byte product to use, see `product.py`; None takes the fastest. rounds: whether many float32 rows
    are rounded to 8 bits for weights of codes, as a few rows always are. None: on CPUs without bfloat16
    products, where this is faster than float32 products.
    """

    name = "cpu"

    def __init__(
        self,
        announce: Callable[[str], None] | None = None,
        form: Form | None = None,
        *,
        rounds: bool | None = None,
    ) -> None:
        self._runner = Runner(announce)
        self._form = available_forms()[0] if form is None else form
        self._rounds = not MULTIPLIES_BFLOAT16 if rounds is None else rounds
        self._arena = Arena(self._runner.threads)
        self._layers: dict[int, Layer] = {}
        self._blocks: dict[torch.dtype, Tensor] = {}  # buffers for unpacked weights

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`."""
        batch, heads, count, dim = keys.shape
        if not count:
            return
        keys = readable(keys, keys.dtype if keys.dtype in KINDS else torch.float32)
        book = [x.contiguous() for x in (codebook.mean, codebook.edge, codebook.balance)]
        chunk = np.zeros(1, CHUNK)
        chunk[0] = (
            batch, heads, count, dim, padded_dim(dim), keys.data_ptr(), *keys.stride()[:3],
            codes.data_ptr(), *codes.stride(), scales.data_ptr(), *scales.stride()[:2],
            *(x.data_ptr() for x in book),
        )  # fmt: skip
        stage = self._runner.compiled(build_encode, KINDS[keys.dtype])
        self._runner.run((stage, batch * heads * -(-count // SHARE), chunk.ctypes.data, 0, 0))

    def read_rows(self, rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
        """See `Backend.read_rows`; in plain torch, as it takes little of the time of reading here."""
        return read(rows, dtype, centre)

    def prefill(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        lengths: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.prefill`. Only for chunks without a `prefill.obstacle`."""
        return by_length(self._flash, queries, keys, values, scaling, lengths, softmax)

    def _flash(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax
    ) -> tuple[Tensor, Tensor]:
        keys, values = within_window(keys, values, queries, softmax)
        out, lse = joined(
            prefill.flash_attention(self._runner, q, k, v, scaling, softmax)
            for q, k, v in zip(queries.split(1), keys.split(1), values.split(1), strict=True)
        )
        return softmax.with_sinks(out, lse)

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
        """See `Backend.prefill_sparsely`. Only for chunks without a `prefill.obstacle`."""
        check_unbounded(softmax)
        sequences = zip(queries.split(1), keys.split(1), values.split(1), means.sequences(), strict=True)
        out, lse = joined(
            reading.read_sparsely(self._runner, q, k, v, m, scaling, settings, softmax, computed)
            for q, k, v, m in sequences
        )
        return softmax.with_sinks(out, lse)

    def dense_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: AnyCache,
        scaling: float,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.dense_step`."""
        layer = self._layer(cache)
        step = begin(queries, keys, values, cache, layer, softmax)
        addresses, new = step.addresses(), step.shape[3]
        segments = [dense_segments(length + new, softmax.first_seen(length)) for length in step.lengths]
        room = max(segments)
        for sequence, length in enumerate(step.lengths):
            layer.steps[sequence] = (
                *step.shape, length, 0, 0, 0, 0, 0, 0, segments[sequence], 0, room, 0, *addresses, scaling, 0,
                step.softcap,
            )  # fmt: skip
        group = queries.shape[1] // keys.shape[1]
        stages = self._runner.compiled(build_dense, KINDS[queries.dtype], *row_kinds(cache), group)
        self._run(layer, step, stages, room, 0, 0)
        return step.out, step.lse

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`."""
        check_unbounded(softmax)
        settings = settings.under(softmax)
        layer = self._layer(cache)
        step = begin(queries, keys, values, cache, layer, softmax)
        budget, (sinks, recents) = settings.budget, settings.forced
        recents = min(recents, budget - sinks)
        tokens = [length + step.shape[3] for length in step.lengths]
        segments = [-(-count // SEGMENT) for count in tokens]
        groups = [groups_of_segment(budget, count) for count in tokens]
        peaks = max(a * b for a, b in zip(segments, groups, strict=True))
        addresses, edge = step.addresses(tally), -1.0 if settings.edge is None else settings.edge
        for sequence, count in enumerate(tokens):
            layer.steps[sequence] = (
                *step.shape, step.lengths[sequence], min(budget, count), sinks, recents,
                settings.scorer == "manhattan",
                settings.compensated and (budget < count or settings.error is not None),
                settings.least_share, segments[sequence], groups[sequence], max(segments), peaks, *addresses,
                scaling, edge, step.softcap,
            )  # fmt: skip
        stages = self._runner.compiled(build_stages, self._form, KINDS[queries.dtype], *row_kinds(cache))
        last = None if tally is None else self._runner.compiled(build_tally)
        self._run(layer, step, stages, max(segments), peaks, budget, last)
        return step.out, step.lse

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """See `Backend.linear`; weights in blocks must be `ready`."""
        if isinstance(weight, Tensor):
            return F.linear(x, weight, bias)
        assert isinstance(weight, BlockWeight)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= FEW_ROWS:
            found = [products.multiply_vector(self._runner, weight, row, bias) for row in rows.float()]
            out = torch.stack(found) if found else rows.new_empty(0, weight.rows)
        elif self._rounds and rows.dtype != torch.bfloat16 and multiplies(weight.kind):
            out = products.multiply_codes(self._runner, weight, rows, bias)
        else:
            rows = rows if rows.dtype == torch.bfloat16 else rows.float()
            out = products.linear(self._runner, weight, rows, bias, self._block(rows.dtype, weight.columns))
        return out.to(x.dtype).reshape(*x.shape[:-1], weight.rows)

    def _block(self, dtype: torch.dtype, columns: int) -> Tensor:
        """The buffer that weights are unpacked into."""
        block = self._blocks.get(dtype)
        if block is None or len(block) < columns:
            block = self._blocks[dtype] = torch.empty(max(products.BLOCK, columns), dtype=dtype)
        return block

    def reads_rows(self, *tensors: Tensor) -> bool:
        """Whether `norm_rows` and `gate_rows` read these, see `between.serves`."""
        return between.serves(*tensors)

    def norm_rows(self, x: Tensor, weight: Tensor, eps: float, *, offset: bool) -> Tensor:
        """RMSNorm of x [..., size] with a weight [size], or (offset) with 1 + weight."""
        return between.norm_rows(self._runner, x, weight, eps, offset=offset)

    def gate_rows(self, x: Tensor, other: Tensor) -> Tensor:
        """silu(x) other, both [..., size], written over x."""
        return between.gate_rows(self._runner, x, other)

    def rotates(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> bool:
        """Whether `rotate_rows` reads these."""
        whole = not queries.shape[-1] % (2 * LANES) and cos.stride() == sin.stride()
        return whole and between.serves(queries, keys, cos, sin)

    def rotate_rows(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The halves of x [1, heads, N, size] rotated by cos and sin [1, N, size]."""
        return between.rotate_rows(self._runner, x, cos, sin)

    def multiply_each(self, x: Tensor, weights: Sequence[BlockWeight]) -> Tensor:
        """The products of weights with equally many columns and one vector, concatenated: float32."""
        return products.multiply_each(self._runner, weights, x)

    def add_products(self, rows: Tensor, weights: Sequence[BlockWeight]) -> Tensor:
        """The sum of the products of weights, all of one shape, each with its own row: float32 [outputs]."""
        return products.add_products(self._runner, weights, rows)

    def ready(self, weight: BlockWeight) -> BlockWeight:
        """The weight itself, or in blocks of 8 bits if no compiled function reads its type."""
        return products.ready(self._runner, weight)

    def quantize(self, weight: Tensor) -> BlockWeight:
        """A weight of numbers, [outputs, inputs], in blocks of 8 bits."""
        return products.quantize(self._runner, weight)

    def as_blocks(self, weight: Tensor) -> BlockWeight:
        """A weight of numbers, [outputs, inputs], in blocks of the same numbers."""
        return products.as_blocks(weight)

    def decoder(self, weights: DecoderWeights) -> Decoder:
        """See `WholeTokens.decoder`."""
        return Decoder(self._runner, weights)

    def _run(
        self,
        layer: Layer,
        step: Step,
        stages: Stages | DenseStages,
        room: int,
        peaks: int,
        budget: int,
        last: int | None = None,
    ) -> None:
        """Run the stages of a step, then the `last` stage, which has one task. room, peaks: see STEP."""
        queries, (dim, dim_v, size) = step.pairs * step.per_head, step.shape[4:]
        self._arena.reserve(
            queries, step.per_head, -(-step.tokens // SEGMENT), peaks, size, max(dim, dim_v), budget
        )
        records = (*layer.addresses, self._arena.address)
        tasks = stages.tasks(step.pairs, queries, room)
        program = [(*stage, *records) for stage in zip(stages, tasks, strict=True)]
        if last is not None:
            program.append((last, 1, *records))
        self._runner.run(*program)

    def _layer(self, cache: AnyCache) -> Layer:
        """The addresses of a cache's buffers, remembered for as long as it lives."""
        layer = self._layers.get(id(cache))
        if layer is None or not layer.describes(cache):
            if layer is None:
                weakref.finalize(cache, self._layers.pop, id(cache), None)
            layer = self._layers[id(cache)] = Layer(cache)
        return layer
