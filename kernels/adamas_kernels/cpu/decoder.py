"""A whole decode step in one call: from a token to the logits of the next, for models of the Llama family.

A layer is nine stages, or eleven with sparse attention, each with its tasks on all threads; between two
tokens nothing but a few numbers changes. Activations are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.contract import AnyCache, DenseCache, SparseSettings
from adamas_kernels.cpu.dense import DenseStages, build_dense
from adamas_kernels.cpu.floats import KINDS, Float32
from adamas_kernels.cpu.formats import MOST_NUMBERS
from adamas_kernels.cpu.linear import products
from adamas_kernels.cpu.multiply import build_gated, build_multiply
from adamas_kernels.cpu.norm_rope import build_norm
from adamas_kernels.cpu.product import available_forms
from adamas_kernels.cpu.records import (
    NORM,
    ROPE,
    SEGMENT,
    STAGES,
    STEP,
    Arena,
    dense_segments,
    describe_dense,
    describe_layer,
    groups_of_segment,
)
from adamas_kernels.cpu.runner import Runner, Stage
from adamas_kernels.cpu.step import Stages, build_stages, build_tally
from adamas_kernels.cpu.tasks import Program
from adamas_kernels.reference import padded_dim
from adamas_kernels.weights import DecoderWeights, Linear


class Decoder:
    """Decodes one token after another with weights in blocks, of one sequence."""

    def __init__(self, runner: Runner, weights: DecoderWeights) -> None:
        self._runner = runner
        self._weights = weights
        size = weights.head_dim
        hidden = weights.hidden
        widest = max(layer.gate.weight.rows for layer in weights.layers)
        self._hidden, self._normed = _filled(hidden), _filled(hidden)
        self._queries, self._attended = _filled(weights.heads * size), _filled(weights.heads * size)
        self._keys, self._values = _filled(weights.kv_heads * size), _filled(weights.kv_heads * size)
        self._gated = _filled(widest)
        self._logits = torch.empty(weights.head.weight.rows)
        self._lse = torch.empty(weights.heads)
        self._cos, self._sin = torch.zeros(size), torch.zeros(size)
        self._arena = Arena(runner.threads)
        self._buffers: tuple[Tensor | None, ...] = ()
        self._settings: SparseSettings | None = None
        self._program: _StepProgram | None = None

    def step(
        self,
        token: int,
        length: int,
        cos: Tensor,
        sin: Tensor,
        layers: Sequence[AnyCache],
        settings: SparseSettings,
        tally: Tensor | None = None,
    ) -> Tensor:
        """See `TokenDecoder.step`."""
        tensors = (tally, *chain.from_iterable(_tensors(layer) for layer in layers))
        same = len(tensors) == len(self._buffers) and settings == self._settings
        if (
            self._program is None
            or not same
            or any(a is not b for a, b in zip(tensors, self._buffers, strict=True))
        ):
            self._program = self._build(layers, settings, len(cos), tally)
            self._buffers, self._settings = tensors, settings
        self._hidden[: self._weights.hidden] = self._weights.embedding(token)
        self._cos[: len(cos)], self._sin[: len(sin)] = cos, sin
        self._program.prepare(length)
        self._runner.run_program(self._program.program)
        return self._logits

    def _build(
        self,
        layers: Sequence[AnyCache],
        settings: SparseSettings,
        rotated: int,
        tally: Tensor | None,
    ) -> _StepProgram:
        builder = _StepProgram(self._arena, self._weights, settings)
        norm, multiply, gated = (self._runner.compiled(x) for x in (build_norm, build_multiply, build_gated))
        keep = builder.keep
        hidden, normed = self._hidden, self._normed

        def normalize(weight: Tensor) -> Stage:
            record = np.zeros(1, NORM)
            record[0] = (
                hidden.data_ptr(), weight.data_ptr(), normed.data_ptr(), self._weights.hidden,
                self._weights.eps,
            )  # fmt: skip
            return norm, 1, keep(record), 0, 0

        def product(x: Tensor, *parts: tuple[Linear, Tensor], add: bool = False) -> Stage:
            records = products(self._runner, [(part.weight, part.bias, out) for part, out in parts], add=add)
            return multiply, int(records["tasks"].sum()), keep(records), x.data_ptr(), 0

        for index, (weights, layer) in enumerate(zip(self._weights.layers, layers, strict=True)):
            builder.add(normalize(weights.attention_norm))
            builder.add(
                product(
                    normed,
                    (weights.query, self._queries),
                    (weights.key, self._keys),
                    (weights.value, self._values),
                )
            )
            rope = np.zeros(1, ROPE)
            rope[0] = (
                self._cos.data_ptr(), self._sin.data_ptr(), _address(weights.query_norm),
                _address(weights.key_norm), rotated, self._weights.eps,
            )  # fmt: skip
            self._attention(builder, index, layer, keep(rope), tally)
            builder.add(product(self._attended, (weights.output, hidden), add=True))
            builder.add(normalize(weights.mlp_norm))
            both = products(
                self._runner,
                [(part.weight, part.bias, self._gated) for part in (weights.gate, weights.up)],
            )
            builder.add((gated, int(both["tasks"][0]), keep(both), normed.data_ptr(), 0))
            builder.add(product(self._gated, (weights.down, hidden), add=True))
        builder.add(normalize(self._weights.norm))
        builder.add(product(normed, (self._weights.head, self._logits)))
        builder.finish()
        return builder

    def _attention(
        self,
        builder: _StepProgram,
        index: int,
        layer: AnyCache,
        rope: int,
        tally: Tensor | None,
    ) -> None:
        """The stages between the products of a layer."""
        weights, size = self._weights, self._weights.head_dim
        kind = KINDS[layer.keys.dtype]
        step = builder.steps[index : index + 1]
        step["batch"], step["new"], step["kv_heads"] = 1, 1, weights.kv_heads
        step["group"], step["dim"], step["dim_v"] = weights.heads // weights.kv_heads, size, size
        step["size"], step["scaling"], step["rope"] = padded_dim(size), weights.scaling, rope
        for name, vector in (("query", self._queries), ("key", self._keys), ("value", self._values)):
            step[name], step[f"{name}_h"] = vector.data_ptr(), size
        step["out"], step["lse"] = self._attended.data_ptr(), self._lse.data_ptr()
        if isinstance(layer, DenseCache):
            dense = self._runner.compiled(build_dense, Float32(), kind)
            record = builder.keep(describe_dense(layer))
            builder.add_attention(index, dense, record)
            return
        settings = builder.settings
        sinks, recents = settings.forced
        step["sinks"], step["recents"] = sinks, min(recents, settings.budget - sinks)
        step["least_share"] = settings.least_share
        step["manhattan"] = settings.scorer == "manhattan"
        step["query_edge"] = -1.0 if settings.edge is None else settings.edge
        sparse = self._runner.compiled(build_stages, available_forms()[0], Float32(), kind)
        record = builder.keep(describe_layer(layer))
        builder.add_attention(index, sparse, record)
        if tally is not None:
            step["tally"], step["tally_b"], step["tally_row"] = tally.data_ptr(), *tally.stride()[:2]
            builder.add_tally(index, self._runner.compiled(build_tally), record)


class _StepProgram:
    """The stages of all layers, and what of their records changes with the length."""

    def __init__(self, arena: Arena, weights: DecoderWeights, settings: SparseSettings) -> None:
        self.settings = settings
        self.steps = np.zeros(len(weights.layers), STEP)
        self._arena, self._weights = arena, weights
        self._sparse = np.zeros(len(weights.layers), bool)
        # By kind, the place of the first stage of each layer's attention.
        self._attention: dict[type[Stages | DenseStages], list[int]] = {Stages: [], DenseStages: []}
        self._stages: list[Stage] = []
        self._records: list[np.ndarray] = []  # an address stays valid as long as its record lives

    def keep(self, record: np.ndarray) -> int:
        """The address of a record, which lives as long as the program."""
        self._records.append(record)
        return int(record.ctypes.data)

    def add(self, stage: Stage) -> None:
        """The next stage."""
        self._stages.append(stage)

    def add_attention(self, index: int, stages: Stages | DenseStages, layer: int) -> None:
        """The stages of one layer's attention, whose tasks depend on the tokens."""
        records = self.steps[index:].ctypes.data, layer, self._arena.address
        self._sparse[index] = isinstance(stages, Stages)
        self._attention[type(stages)].append(len(self._stages))
        for function in stages:
            self.add((function, 0, *records))

    def add_tally(self, index: int, function: int, layer: int) -> None:
        """The stage behind a layer's attention that adds up what it attended to."""
        self.add((function, 1, self.steps[index:].ctypes.data, layer, self._arena.address))

    def finish(self) -> None:
        """All stages are there."""
        self.program = Program(np.array(self._stages, STAGES))

    def prepare(self, length: int) -> None:
        """Set what depends on the tokens in the cache."""
        tokens, settings, weights = length + 1, self.settings, self._weights
        segments, dense = -(-tokens // SEGMENT), dense_segments(tokens)
        groups = groups_of_segment(settings.budget, tokens)
        self.steps["length"], self.steps["groups"] = length, groups
        self.steps["segments"] = self.steps["room"] = np.where(self._sparse, segments, dense)
        self.steps["peak_room"] = segments * groups
        self.steps["budget"] = min(settings.budget, tokens)
        self.steps["compensated"] = settings.compensated and (
            settings.budget < tokens or settings.error is not None
        )
        for kind, count in ((Stages, segments), (DenseStages, dense)):
            at = np.array(self._attention[kind], int)[:, None] + np.arange(len(kind._fields))
            self.program.records["tasks"][at] = kind.tasks(weights.kv_heads, weights.heads, count)
        self._arena.reserve(
            weights.heads, weights.heads // weights.kv_heads, segments, segments * groups,
            padded_dim(weights.head_dim), weights.head_dim, settings.budget,
        )  # fmt: skip


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _filled(size: int) -> Tensor:
    """Float32 zeros, up to a whole number of blocks of any type: a weight may have columns of zeros behind
    the last one.
    """
    return torch.zeros(-(-size // MOST_NUMBERS) * MOST_NUMBERS)


def _tensors(layer: AnyCache) -> tuple[Tensor | None, ...]:
    """All that a program knows the addresses of."""
    if isinstance(layer, DenseCache):
        return layer.keys, layer.values, layer.value_sum
    book = layer.codebook
    return (
        layer.keys, layer.values, layer.value_sum, layer.codes, layer.scales, book.mean, book.edge,
        book.balance, book.noise,
    )  # fmt: skip
