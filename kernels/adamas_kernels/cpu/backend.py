"""The CPU backend: one Python call to one compiled function per layer and step."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.contract import LayerCache, SparseSettings, check_step, check_whole_budgets
from adamas_kernels.cpu.encode import SHARE, build_encode
from adamas_kernels.cpu.floats import KINDS
from adamas_kernels.cpu.product import Form, available_forms
from adamas_kernels.cpu.records import CHUNK, SEGMENT, STEP, Arena, describe_layer, groups_of_segment
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.step import build_stages, build_tally
from adamas_kernels.reference import Codebook, padded_dim


class CpuBackend:
    """Adamas in functions that numba compiles for this CPU.

    announce: told, in one line, before anything is compiled; what an earlier process compiled is on disk.
    form: the byte product to use, see `product.py`; None takes the fastest.
    """

    name = "cpu"

    def __init__(self, announce: Callable[[str], None] | None = None, form: Form | None = None) -> None:
        self._runner = Runner(announce)
        self._form = available_forms()[0] if form is None else form
        self._arena = Arena(self._runner.threads)
        self._layers: dict[int, _Layer] = {}

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """See `Backend.encode_keys`."""
        batch, heads, count, dim = keys.shape
        if not count:
            return
        keys = _readable(keys, keys.dtype if keys.dtype in KINDS else torch.float32)
        book = [x.contiguous() for x in (codebook.mean, codebook.edge, codebook.balance)]
        chunk = np.zeros(1, CHUNK)
        chunk[0] = (
            batch, heads, count, dim, padded_dim(dim), keys.data_ptr(), *keys.stride()[:3],
            codes.data_ptr(), *codes.stride(), scales.data_ptr(), *scales.stride()[:2],
            *(x.data_ptr() for x in book),
        )  # fmt: skip
        stage = self._runner.compiled(build_encode, KINDS[keys.dtype])
        self._runner.run((stage, batch * heads * -(-count // SHARE), chunk.ctypes.data, 0, 0))

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`."""
        check_step(queries, keys, values, cache)
        check_whole_budgets(settings)
        layer = self._layers.get(id(cache))
        if layer is None or not layer.describes(cache):
            layer = self._describe(cache)
        batch, heads, new, dim = queries.shape
        kv_heads, dim_v = values.shape[1], values.shape[3]
        length = int(layer.length[0])
        size, tokens = padded_dim(dim), length + new
        if cache.keys.shape[::3] != (batch, dim):
            raise ValueError(f"keys {tuple(keys.shape)} do not fit the cache's {tuple(cache.keys.shape)}")
        if tokens > cache.capacity:
            raise ValueError(f"{length} + {new} tokens do not fit a cache of {cache.capacity}")
        queries = _readable(queries, queries.dtype)
        keys, values = _readable(keys, queries.dtype), _readable(values, queries.dtype)
        out = torch.empty(batch, heads, new, dim_v, dtype=queries.dtype)
        lse = torch.empty(batch, heads, new)
        segments, groups = -(-tokens // SEGMENT), groups_of_segment(settings.budget, tokens)
        sinks, recents = settings.forced
        step = layer.step
        step[0] = (
            batch, kv_heads, heads // kv_heads, new, dim, dim_v, size, length,
            min(settings.budget, tokens), sinks, min(recents, settings.budget - sinks),
            settings.scorer == "manhattan", settings.compensated and settings.budget < tokens,
            segments, groups, queries.data_ptr(), *queries.stride()[:3], keys.data_ptr(), *keys.stride()[:3],
            values.data_ptr(), *values.stride()[:3], out.data_ptr(), lse.data_ptr(),
            *((tally.data_ptr(), *tally.stride()[:2]) if tally is not None else (0, 0, 0)), 0,
            scaling, -1.0 if settings.edge is None else settings.edge,
        )  # fmt: skip
        pairs, places = batch * kv_heads, batch * heads * new
        self._arena.reserve(
            places, heads // kv_heads * new, segments, groups, size, max(dim, dim_v),
            settings.budget,
        )  # fmt: skip
        stages = self._runner.compiled(
            build_stages, self._form, KINDS[queries.dtype], KINDS[cache.keys.dtype]
        )
        tasks = stages.tasks(pairs, places, segments)
        records = (*layer.addresses, self._arena.address)
        program = [(*stage, *records) for stage in zip(stages, tasks, strict=True)]
        if tally is not None:
            program.append((self._runner.compiled(build_tally), 1, *records))
        self._runner.run(*program)
        return out, lse

    def _describe(self, cache: LayerCache) -> _Layer:
        """Remember where a cache's buffers are for as long as it lives."""
        if id(cache) not in self._layers:
            weakref.finalize(cache, self._layers.pop, id(cache), None)
        layer = self._layers[id(cache)] = _Layer(cache)
        return layer


class _Layer:
    """Where the buffers of one cache are."""

    def __init__(self, cache: LayerCache) -> None:
        self._tensors = _tensors(cache)
        self._record = describe_layer(cache)
        self.step = np.zeros(1, STEP)
        self.addresses = self.step.ctypes.data, self._record.ctypes.data
        self.length = cache.length.numpy()

    def describes(self, cache: LayerCache) -> bool:
        """Whether the cache still has the same tensors."""
        return all(a is b for a, b in zip(self._tensors, _tensors(cache), strict=True))


def _tensors(cache: LayerCache) -> tuple[Tensor, ...]:
    book = cache.codebook
    return (
        cache.keys, cache.values, cache.codes, cache.scales, cache.value_sum, book.mean, book.edge,
        book.balance, book.noise, cache.length,
    )  # fmt: skip


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this dtype with its last dimension contiguous; itself where it is so already."""
    x = x if x.dtype == dtype else x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()
