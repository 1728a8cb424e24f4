"""A whole decode step in one call: from one token, or a few, to the logits behind each, for layers that
`weights.py` describes.

A layer of the plainest kind is 13 stages, or 15 with sparse attention, each with its tasks on all
threads; between two steps nothing but a few numbers changes. Activations are float32. Each of several tokens
is computed as it would be alone, and weights are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from adamas_kernels.contract import AnyCache, DenseCache, SparseSettings
from adamas_kernels.cpu.dense import build_dense
from adamas_kernels.cpu.floats import Float32
from adamas_kernels.cpu.formats import MOST_NUMBERS
from adamas_kernels.cpu.linear import Inputs
from adamas_kernels.cpu.product import available_forms
from adamas_kernels.cpu.program import StepProgram
from adamas_kernels.cpu.records import ROPE, Arena, describe_dense, describe_layer, row_kinds
from adamas_kernels.cpu.rows import TILE
from adamas_kernels.cpu.runner import Runner
from adamas_kernels.cpu.step import build_stages, build_tally
from adamas_kernels.reference import padded_dim
from adamas_kernels.softmax import Softmax
from adamas_kernels.weights import AttentionWeights, DecoderWeights, LayerWeights, Mixture, Mlp, Norm

Rotation = tuple[Tensor, Tensor]


class Decoder:
    """Decodes with weights in blocks, a few tokens of one sequence at a time."""

    def __init__(self, runner: Runner, weights: DecoderWeights) -> None:
        self._runner, self._weights = runner, weights
        self._arena = Arena(runner.threads)
        self._steps: dict[int, _Steps] = {}  # by how many tokens they take

    def step(
        self,
        tokens: Sequence[int],
        length: int,
        rotations: Sequence[Rotation],
        layers: Sequence[AnyCache],
        settings: SparseSettings,
        tally: Tensor | None = None,
    ) -> Tensor:
        """See `TokenDecoder.step`."""
        rows = len(tokens)
        if rows not in self._steps:
            self._steps[rows] = _Steps(self._runner, self._arena, self._weights, rows)
        return self._steps[rows].run(tokens, length, rotations, layers, settings, tally)

    def most(self, length: int) -> int:
        """See `TokenDecoder.most`."""
        return min((steps.most(length) for steps in self._steps.values()), default=1)


class _Steps:
    """The steps of so many tokens, `rows`."""

    def __init__(self, runner: Runner, arena: Arena, weights: DecoderWeights, rows: int) -> None:
        self._runner, self._arena, self._weights, self._rows = runner, arena, weights, rows
        self._vectors: dict[tuple[str, int, int], Tensor] = {}
        self._hidden = self._vector("hidden", weights.hidden)
        self._logits = torch.empty(rows, weights.head.weight.rows)
        self._lse = torch.empty(rows * max(layer.attention.heads for layer in weights.layers))
        self._rotations: list[Rotation] = []
        self._buffers: tuple[Tensor | None, ...] = ()
        self._settings: SparseSettings | None = None
        self._program: StepProgram | None = None

    def run(
        self,
        tokens: Sequence[int],
        length: int,
        rotations: Sequence[Rotation],
        layers: Sequence[AnyCache],
        settings: SparseSettings,
        tally: Tensor | None,
    ) -> Tensor:
        """See `TokenDecoder.step`."""
        if not self._rotations:
            self._rotations = [(cos.contiguous().clone(), sin.contiguous().clone()) for cos, sin in rotations]
        for kept, new in zip(self._rotations, rotations, strict=True):
            for mine, its in zip(kept, new, strict=True):
                mine.copy_(its)
        tensors = (tally, *chain.from_iterable(_tensors(layer) for layer in layers))
        same = len(tensors) == len(self._buffers) and settings == self._settings
        if (
            self._program is None
            or not same
            or any(a is not b for a, b in zip(tensors, self._buffers, strict=True))
        ):
            self._program = self._build(layers, settings, tally)
            self._buffers, self._settings = tensors, settings
        for row, token in zip(self._hidden, tokens, strict=True):
            row[: self._weights.hidden] = self._weights.embedding(token)
        self._program.prepare(length)
        self._runner.run_program(self._program.program)
        cap = self._weights.softcap
        return self._logits if cap is None else self._logits.div_(cap).tanh_().mul_(cap)

    def most(self, length: int) -> int:
        """See `TokenDecoder.most`."""
        return 1 if self._program is None else self._program.most(length)

    def _build(
        self, layers: Sequence[AnyCache], settings: SparseSettings, tally: Tensor | None
    ) -> StepProgram:
        attention = [layer.attention for layer in self._weights.layers]
        program = StepProgram(self._runner, self._arena, attention, settings, self._rows)
        for index, (weights, layer) in enumerate(zip(self._weights.layers, layers, strict=True)):
            self._layer(program, index, weights, layer, tally)
        normed = self._normalized(program, self._weights.norm, "normed")
        parts = [(self._weights.head, self._logits)]
        program.multiply(program.inputs(normed), parts, factor=self._weights.factor)
        program.finish()
        return program

    def _layer(
        self, program: StepProgram, index: int, weights: LayerWeights, layer: AnyCache, tally: Tensor | None
    ) -> None:
        x = own = program.inputs(self._normalized(program, weights.before_attention, "normed"))
        if weights.parallel and weights.before_mlp is not None:
            own = program.inputs(self._normalized(program, weights.before_mlp, "also normed"))
        attended = self._attended(program, index, weights.attention, x, layer, tally)
        out, add = self._target(weights.after_attention)
        parts = [(weights.attention.output, out)]
        program.multiply(program.inputs(attended), parts, add=add, factor=weights.factor)
        self._add_normalized(program, weights.after_attention, out)
        if not weights.parallel:
            own = program.inputs(self._normalized(program, weights.before_mlp, "normed"))
        out, add = self._target(weights.after_mlp)
        if isinstance(weights.mlp, Mixture):
            for row, its in enumerate(out):  # each token has experts of its own
                one = own.only(row)
                self._mixture(program, weights.mlp, one, its[None], add=add, factor=weights.factor)
        else:
            self._mlp(program, weights.mlp, own, out, add=add, factor=weights.factor)
        self._add_normalized(program, weights.after_mlp, out)

    def _normalized(self, program: StepProgram, norm: Norm | None, name: str) -> Tensor:
        """The hidden state, or a vector of this name with its norm."""
        if norm is None:
            return self._hidden
        out = self._vector(name, self._weights.hidden)
        program.normalize((norm, self._hidden, out))
        return out

    def _target(self, after: Norm | None) -> tuple[Tensor, bool]:
        """Where a branch's last product goes, and whether it is added to what is there."""
        if after is None:
            return self._hidden, True
        return self._vector("branch", self._weights.hidden), False

    def _add_normalized(self, program: StepProgram, after: Norm | None, branch: Tensor) -> None:
        """Add a branch to the hidden state where its norm has kept it from being added."""
        if after is not None:
            program.normalize((after, branch, branch), total=self._hidden)

    def _mlp(
        self, program: StepProgram, mlp: Mlp, x: Inputs, out: Tensor, *, add: bool, factor: float
    ) -> None:
        inner = self._vector("inner", mlp.inner)
        program.first_products(x, [program.inner_record(mlp, x, inner)])
        program.multiply(program.inputs(inner), [(mlp.down, out)], add=add, factor=factor)

    def _mixture(
        self, program: StepProgram, mixture: Mixture, x: Inputs, out: Tensor, *, add: bool, factor: float
    ) -> None:
        router, shared = mixture.router, mixture.shared
        (logits,) = self._vector("router", router.logits.weight.rows, 1)
        (shares,) = self._vector("shares", router.choices, 1)
        chosen = self._vector("chosen", router.choices, 1)[0, : router.choices].view(torch.int32)
        gate = scale = None
        parts = [(router.logits, logits)]
        if mixture.shared_gate is not None:
            (gate,), (scale,) = self._vector("shared gate", 1, 1), self._vector("scale", 1, 1)
            parts.append((mixture.shared_gate, gate))
        program.multiply(x, parts)
        program.route(router, logits, chosen, shares, gate, scale)
        inner = self._vector("experts", mixture.experts.inner, router.choices)
        records = [program.inner_record(mixture.experts, x, inner, chosen=chosen)]
        if shared is not None:
            also = self._vector("shared", shared.inner, 1)
            records.append(program.inner_record(shared, x, also, scale=scale))
        program.first_products(x, records)
        program.mix(mixture, program.inputs(inner), chosen, shares, out, add=add, factor=factor)
        if shared is not None:
            program.multiply(program.inputs(also), [(shared.down, out)], add=True, factor=factor)

    def _attended(
        self,
        program: StepProgram,
        index: int,
        weights: AttentionWeights,
        x: Inputs,
        layer: AnyCache,
        tally: Tensor | None,
    ) -> Tensor:
        """The stages from a layer's queries, keys and values to what it attended to."""
        ends = list(accumulate(part.weight.rows for part in weights.inputs))
        inputs = self._vector("inputs", ends[-1])
        starts = [inputs[:, end - part.weight.rows :] for part, end in zip(weights.inputs, ends, strict=True)]
        program.multiply(x, list(zip(weights.inputs, starts, strict=True)))
        query, key, value = (inputs[:, place:] for place in weights.places)
        whole = [
            (norm, vector, vector)
            for norm, vector in ((weights.query_norm, query), (weights.key_norm, key))
            if norm is not None and norm.weight.shape[-1] != weights.head_dim
        ]
        program.normalize(*whole)
        attended = self._vector("attended", weights.heads * weights.head_dim)
        size, step = weights.head_dim, program.steps[index : index + 1]
        step["batch"], step["new"], step["kv_heads"] = 1, self._rows, weights.kv_heads
        step["group"], step["dim"], step["dim_v"] = weights.heads // weights.kv_heads, size, size
        step["size"], step["scaling"] = padded_dim(size), weights.scaling
        step["rope"] = self._rope(program, weights, query, key)
        for name, vector in (("query", query), ("key", key), ("value", value)):
            step[name], step[f"{name}_h"] = vector.data_ptr(), weights.step
            step[f"{name}_n"] = vector.stride(0)
        step["out"], step["lse"] = attended.data_ptr(), self._lse.data_ptr()
        step["out_h"], step["out_n"] = size, attended.stride(0)
        softmax = weights.softmax
        step["softcap"], step["window"] = softmax.softcap, softmax.window or 0
        step["ring"] = 0 if softmax.window is None else layer.capacity
        step["sink_scores"] = 0 if softmax.sinks is None else softmax.sinks.data_ptr()
        self._attend(program, index, layer, softmax, tally)
        return attended

    def _rope(self, program: StepProgram, weights: AttentionWeights, query: Tensor, key: Tensor) -> int:
        """The address of a layer's ROPE."""
        norms = [
            program.keep(program.norm_record(norm, vector, vector))
            if norm is not None and norm.weight.shape[-1] == weights.head_dim
            else 0
            for norm, vector in ((weights.query_norm, query), (weights.key_norm, key))
        ]
        empty = self._hidden[:, :0]
        cos, sin = (empty, empty) if weights.rotation is None else self._rotations[weights.rotation]
        record = np.zeros(1, ROPE)
        record[0] = (
            cos.data_ptr(), sin.data_ptr(), cos.shape[-1], *norms, weights.norms_last, 2 * cos.shape[-1],
            weights.pairs,
            weights.clip or 0,
        )  # fmt: skip
        return program.keep(record)

    def _attend(
        self, program: StepProgram, index: int, layer: AnyCache, softmax: Softmax, tally: Tensor | None
    ) -> None:
        """The stages of a layer's attention."""
        kinds, step = row_kinds(layer), program.steps[index : index + 1]
        if isinstance(layer, DenseCache):
            dense = self._runner.compiled(build_dense, Float32(), *kinds)
            program.attend(index, dense, program.keep(describe_dense(layer)))
            return
        settings = program.settings.under(softmax)
        sinks, recents = settings.forced
        step["sinks"], step["recents"] = sinks, min(recents, settings.budget - sinks)
        step["least_share"] = settings.least_share
        step["manhattan"] = settings.scorer == "manhattan"
        step["query_edge"] = -1.0 if settings.edge is None else settings.edge
        sparse = self._runner.compiled(build_stages, available_forms()[0], Float32(), *kinds)
        record = program.keep(describe_layer(layer))
        program.attend(index, sparse, record)
        if tally is not None:
            step["tally"], (step["tally_n"], step["tally_row"]) = tally.data_ptr(), tally.stride()[:2]
            program.tally(index, self._runner.compiled(build_tally), record)

    def _vector(self, name: str, size: int, rows: int | None = None) -> Tensor:
        """Float32 zeros of a name and size, which layers share, for each token or [rows, size]. Rows go up to
        a whole number of blocks of any type: a weight may have columns of zeros behind the last one.
        """
        rows = self._rows if rows is None else rows
        key = name, size, rows
        if key not in self._vectors:
            columns = -(-size // MOST_NUMBERS) * MOST_NUMBERS
            self._vectors[key] = torch.zeros(-(-rows // TILE) * TILE, columns)[:rows]
        return self._vectors[key]


def _tensors(layer: AnyCache) -> tuple[Tensor | None, ...]:
    """All that a program knows the addresses of."""
    if isinstance(layer, DenseCache):
        return layer.keys, layer.values, layer.value_sum, layer.centre
    book = layer.codebook
    return (
        layer.keys, layer.values, layer.value_sum, layer.centre, layer.codes, layer.scales, book.mean,
        book.edge, book.balance, book.noise,
    )  # fmt: skip
