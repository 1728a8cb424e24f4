"""Attention of one sequence's new tokens in all layers: the records for attention's stages."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.contract import LARGEST_STEP, AnyCache, DenseCache, LayerCache, NewTokens, SparseSettings
from adamas_kernels.cpu.dense import DenseStages, build_dense
from adamas_kernels.cpu.floats import Float32
from adamas_kernels.cpu.product import available_forms
from adamas_kernels.cpu.records import (
    LAYER,
    ROPE,
    SEGMENT,
    STEP,
    Arena,
    dense_segments,
    describe_dense,
    describe_layer,
    groups_of_segment,
    row_kinds,
)
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.step import Stages, build_stages, build_tally
from adamas_kernels.reference import padded_dim
from adamas_kernels.weights import AttentionWeights

RANK_BYTES = 8  # scratch memory per query and token
MOST_SCRATCH = 1 << 27  # bytes of it, unless a step takes only one token
TALLY = len(Stages._fields)  # the index of the stage after the others
SLOTS = TALLY + 1  # stages of a layer's attention; a stage without tasks does nothing


class Heads(NamedTuple):
    """A layer's queries, keys and values, the output of its attention, and the log-sum-exp of each query, all
    starting at the same token.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor


class Attending:
    """The attention of `new` tokens of one sequence.

    weights: one per layer. stages: STAGES [layers, SLOTS], written here; they hold addresses of this object's
    records. Call `prepare` before `place`.
    """

    def __init__(
        self,
        runner: Runner,
        arena: Arena,
        weights: Sequence[AttentionWeights],
        new: int,
        stages: np.ndarray,
    ) -> None:
        self._runner, self._arena, self._weights, self._new = runner, arena, weights, new
        self._stages = stages
        self._rotations: list[tuple[Tensor, Tensor]] = []
        self._steps, self._layers = np.zeros(len(weights), STEP), np.zeros(len(weights), LAYER)
        self._ropes = np.zeros(len(weights), ROPE)
        self._steps["scaling"] = [layer.scaling for layer in weights]
        self._stages["first"] = _addresses(self._steps)[:, None]
        self._stages["second"] = _addresses(self._layers)[:, None]
        self._stages["third"] = arena.address
        self._settings = SparseSettings()
        self._known: list[weakref.ref[Tensor] | None] = []  # tensors whose addresses are in the records
        # Indices of layers that attend alike, by their stages, KV heads, heads and window.
        self._alike: dict[tuple[type[Stages | DenseStages], int, int, int | None], list[int]] = {}
        self._growing = [index for index, layer in enumerate(weights) if layer.growth is not None]
        self._growths = {layer.growth[1] for layer in weights if layer.growth is not None}
        self._capped = np.array([layer.softmax.softcap > 0 for layer in weights])
        self._heads = max(layer.heads for layer in weights)
        self._group = max(layer.heads // layer.kv_heads for layer in weights)
        self._head_dim = max(layer.head_dim for layer in weights)

    def place(self, index: int, heads: Heads, norms: tuple[int, int]) -> None:
        """Record where a layer's vectors are. norms: addresses of a NORM for queries and for keys, or 0."""
        weights, step = self._weights[index], self._steps[index : index + 1]
        size, softmax = weights.head_dim, weights.softmax
        step["batch"], step["new"], step["kv_heads"] = 1, self._new, weights.kv_heads
        step["group"], step["dim"], step["dim_v"] = weights.heads // weights.kv_heads, size, size
        step["size"] = padded_dim(size)
        for name, vector in zip(("query", "key", "value"), heads, strict=False):
            step[name], step[f"{name}_h"] = vector.data_ptr(), weights.step
            step[f"{name}_n"] = vector.stride(0)
        step["out"], step["lse"] = heads.out.data_ptr(), heads.lse.data_ptr()
        step["out_h"], step["out_n"] = size, heads.out.stride(0)
        step["softcap"], step["window"] = softmax.softcap, softmax.window or 0
        step["sink_scores"] = 0 if softmax.sinks is None else softmax.sinks.data_ptr()
        empty = torch.empty(0)
        cos, sin = (empty, empty) if weights.rotation is None else self._rotations[weights.rotation]
        self._ropes[index] = (
            cos.data_ptr(), sin.data_ptr(), cos.shape[-1], *norms, weights.norms_last, 2 * cos.shape[-1],
            weights.pairs,
            weights.clip or 0,
        )  # fmt: skip
        step["rope"] = _addresses(self._ropes)[index]

    def most(self, length: int) -> int:
        """The most tokens that one step may take after `length` tokens in the cache. Each is then computed as
        it would be alone, with the same scaling and number of rank groups, and scratch memory stays small.
        """
        budget, ranks = self._settings.budget, RANK_BYTES * self._heads * (length + LARGEST_STEP)
        most = min(LARGEST_STEP, max(1, MOST_SCRATCH // ranks))
        for growth in self._growths:
            most = min(most, growth - length % growth)
        groups = groups_of_segment(budget, length + 1)
        while groups_of_segment(budget, length + most) != groups:
            most -= 1
        return most

    def prepare(self, sequence: NewTokens) -> None:
        """Set everything that depends on the sequence, for the next step."""
        if not self._rotations:
            self._rotations = [
                (c.contiguous().clone(), s.contiguous().clone()) for c, s in sequence.rotations
            ]
        for kept, new in zip(self._rotations, sequence.rotations, strict=True):
            for mine, its in zip(kept, new, strict=True):
                mine.copy_(its)
        self._use(sequence)
        length, settings = sequence.length, sequence.settings
        tokens, steps = length + self._new, self._steps
        segments, groups = -(-tokens // SEGMENT), groups_of_segment(settings.budget, tokens)
        steps["length"], steps["groups"] = length, groups
        steps["peak_room"] = segments * groups
        steps["budget"] = min(settings.budget, tokens)
        chosen = settings.budget < tokens
        by_error = settings.error is not None
        steps["compensated"] = settings.compensated and (chosen | (by_error & ~self._capped))
        for index in self._growing:
            steps["scaling"][index] = self._weights[index].scaling_at(length)
        for (kind, kv_heads, heads, window), layers in self._alike.items():
            first = 0 if window is None else max(0, length + 1 - window)
            count = segments if kind is Stages else dense_segments(tokens, first)
            steps["segments"][layers] = steps["room"][layers] = count
            tasks = kind.tasks(kv_heads, heads * self._new, count)
            self._stages["tasks"][layers, : len(tasks)] = tasks
        self._arena.reserve(
            self._heads * self._new, self._group * self._new, segments, segments * groups,
            padded_dim(self._head_dim), self._head_dim, settings.budget,
        )  # fmt: skip

    def _use(self, sequence: NewTokens) -> None:
        """Describe the buffers of all layers, unless they are those of the previous step."""
        tensors = [sequence.tally]
        for layer in sequence.layers:
            tensors += _tensors(layer)
        same = len(tensors) == len(self._known) and sequence.settings == self._settings
        if same and all(x is (known and known()) for x, known in zip(tensors, self._known, strict=True)):
            return
        self._known = []  # until everything is described
        self._settings = sequence.settings
        self._alike = {}
        self._stages["tasks"] = 0
        for index, layer in enumerate(sequence.layers):
            stages = self._describe(index, layer, sequence.settings, sequence.tally)
            self._stages["function"][index, : len(stages)] = stages
            weights = self._weights[index]
            kind = type(stages), weights.kv_heads, weights.heads, weights.softmax.window
            self._alike.setdefault(kind, []).append(index)
        self._known = [None if x is None else weakref.ref(x) for x in tensors]

    def _describe(
        self, index: int, layer: AnyCache, settings: SparseSettings, tally: Tensor | None
    ) -> Stages | DenseStages:
        """Describe the buffers of one layer; returns the stages that attend to them."""
        weights, step = self._weights[index], self._steps[index : index + 1]
        softmax = weights.softmax
        kinds = row_kinds(layer)
        step["ring"] = 0 if softmax.window is None else layer.capacity
        if isinstance(layer, DenseCache):
            self._layers[index] = describe_dense(layer)[0]
            return self._runner.compiled(build_dense, Float32(), *kinds, weights.heads // weights.kv_heads)
        settings = settings.under(softmax)
        sinks, recents = settings.forced
        step["sinks"], step["recents"] = sinks, min(recents, settings.budget - sinks)
        step["least_share"] = settings.least_share
        step["manhattan"] = settings.scorer == "manhattan"
        step["query_edge"] = -1.0 if settings.edge is None else settings.edge
        self._layers[index] = describe_layer(layer)[0]
        step["tally"] = 0
        if tally is not None:
            step["tally"], (step["tally_n"], step["tally_row"]) = tally.data_ptr(), tally.stride()[:2]
            self._stages["function"][index, TALLY] = self._runner.compiled(build_tally)
            self._stages["tasks"][index, TALLY] = 1
        return self._runner.compiled(build_stages, available_forms()[0], Float32(), *kinds)


def _addresses(records: np.ndarray) -> np.ndarray:
    """The address of each record."""
    return int(records.ctypes.data) + records.itemsize * np.arange(len(records))


def _tensors(layer: AnyCache) -> list[Tensor | None]:
    """All tensors of a layer whose addresses are in records."""
    buffers = [layer.keys, layer.values, layer.value_sum, layer.centre]
    if isinstance(layer, LayerCache):
        buffers += [layer.codes, layer.scales, *vars(layer.codebook).values()]
    return buffers
