"""The program of a decode step of one token or a few: the stages of all layers, and what of their records
changes with the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from adamas_kernels.cpu.dense import DenseStages
from adamas_kernels.cpu.inner import KINDS as ACTIVATIONS
from adamas_kernels.cpu.inner import build_inner
from adamas_kernels.cpu.linear import Inputs, products, rows_of_task
from adamas_kernels.cpu.mixture import SCORINGS, build_mixture, build_route
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.norm_rope import build_norm
from adamas_kernels.cpu.records import (
    INNER,
    MIXTURE,
    NORM,
    ROUTE,
    SEGMENT,
    STAGES,
    STEP,
    Arena,
    dense_segments,
    groups_of_segment,
)
from adamas_kernels.cpu.runner import Runner, Stage
from adamas_kernels.cpu.step import Stages
from adamas_kernels.cpu.tasks import Program
from adamas_kernels.reference import padded_dim
from adamas_kernels.weights import AttentionWeights, Linear, Mixture, Mlp, Norm, Router

RANK_BYTES = 8  # that a query has of each token in scratch memory
MOST_SCRATCH = 1 << 27  # bytes of that, where a step could take fewer tokens


class StepProgram:
    """Stages are added in order; after `finish` they run as `program`, each time `prepare`d for a length.

    Vectors of its `rows` tokens are [rows, padded], and their memory goes on to a whole number of TILEs.
    steps: a STEP for each layer. Tensors that are named here must live as long as this.
    """

    def __init__(
        self,
        runner: Runner,
        arena: Arena,
        attention: Sequence[AttentionWeights],
        settings: SparseSettings,
        rows: int = 1,
    ) -> None:
        self.settings, self.rows = settings, rows
        self.steps = np.zeros(len(attention), STEP)
        self._runner, self._arena = runner, arena
        self._layers = attention
        # Of layers that attend alike, by their stages, KV heads, heads and window: the index of each, and the
        # place of its first stage.
        self._alike: dict[tuple[type[Stages | DenseStages], int, int, int | None], list[tuple[int, int]]] = {}
        self._stages: list[Stage] = []
        self._records: list[np.ndarray] = []  # an address stays valid as long as its record lives
        self._inputs: list[Inputs] = []

    def keep(self, record: np.ndarray) -> int:
        """The address of a record, which lives as long as the program."""
        self._records.append(record)
        return int(record.ctypes.data)

    def add(self, stage: Stage) -> None:
        """The next stage."""
        self._stages.append(stage)

    def norm_record(self, norm: Norm, x: Tensor, out: Tensor, total: Tensor | None = None) -> np.ndarray:
        """See NORM."""
        record = np.zeros(1, NORM)
        size = norm.weight.shape[-1]
        record[0] = (
            x.data_ptr(), norm.weight.data_ptr(), _address(norm.bias), size if norm.weight.ndim > 1 else 0,
            out.data_ptr(), _address(total), size, norm.centred, norm.eps,
        )  # fmt: skip
        return record

    def normalize(self, *norms: tuple[Norm, Tensor, Tensor], total: Tensor | None = None) -> None:
        """Norms of vectors, one of each token: (norm, x, out) each; x and out may be the same. total: where
        they are added.
        """
        if norms:
            records = np.concatenate(
                [
                    self.norm_record(norm, x[row], out[row], None if total is None else total[row])
                    for norm, x, out in norms
                    for row in range(self.rows)
                ]
            )
            self.add((self._runner.compiled(build_norm), len(records), self.keep(records), 0, 0))

    def inputs(self, x: Tensor) -> Inputs:
        """Vectors as they are now, [rows, numbers], which weights are to be multiplied with: of whole blocks.
        They are rounded once for all these products.
        """
        inputs = Inputs(self._runner, x.view(-1, x.shape[-1]))
        assert inputs.rows.data_ptr() == x.data_ptr()
        self._inputs.append(inputs)
        self.add(inputs.stage)
        return inputs

    def multiply(
        self, x: Inputs, parts: Sequence[tuple[Linear, Tensor]], *, add: bool = False, factor: float = 1.0
    ) -> None:
        """Products of linear layers with x, one vector or one of each token, written to or added to as many
        each.
        """
        records = self._products(parts, x, add=add, factor=factor)
        tasks = int(records["tasks"].sum())
        self.add((self._runner.compiled(build_multiply), tasks, self.keep(records), *x.addresses()))

    def first_products(self, x: Inputs, records: Sequence[np.ndarray]) -> None:
        """What comes before the last products of MLPs, see `inner_record`."""
        joined = np.concatenate(records)
        tasks = int(joined["tasks"].sum())
        self.add((self._runner.compiled(build_inner), tasks, self.keep(joined), *x.addresses()))

    def inner_record(
        self,
        mlp: Mlp,
        x: Inputs,
        out: Tensor,
        *,
        chosen: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> np.ndarray:
        """See INNER. out: float32 [slots, padded], a row for each of the `chosen` experts, int32 [slots], or
        for each row of x.
        """
        first = self._products([(part, out) for part in mlp.first], x)
        vectors = len(x.rows)
        slots = len(out) // vectors
        gate = self.keep(first)
        up = gate + first.nbytes - first.itemsize
        share, act = rows_of_task(self._runner, mlp.inner, slots), mlp.activation
        joined, plain = mlp.order in ("halves", "alternating"), mlp.order == "plain"
        record = np.zeros(1, INNER)
        record[0] = (
            0 if plain else gate, up, mlp.inner if mlp.order == "halves" else 0,
            2 * mlp.inner if joined else mlp.inner, mlp.order == "alternating", mlp.inner, vectors,
            out.data_ptr(), out.stride(0), _address(chosen), _address(scale), ACTIVATIONS.index(act.kind),
            slots, share, slots * -(-mlp.inner // share), act.alpha, act.limit or 0, act.shift,
        )  # fmt: skip
        return record

    def route(
        self, router: Router, logits: Tensor, chosen: Tensor, shares: Tensor,
        gate: Tensor | None, scale: Tensor | None,
    ) -> None:  # fmt: skip
        """Choose experts, see ROUTE."""
        record = np.zeros(1, ROUTE)
        record[0] = (
            logits.data_ptr(), _address(router.correction), router.logits.weight.rows, router.choices,
            SCORINGS.index(router.scoring), router.normalized, router.groups, router.kept_groups,
            chosen.data_ptr(), shares.data_ptr(), _address(gate), _address(scale), router.factor,
            router.tolerance,
        )  # fmt: skip
        self.add((self._runner.compiled(build_route), 1, self.keep(record), 0, 0))

    def mix(
        self, mixture: Mixture, inner: Inputs, chosen: Tensor, shares: Tensor, out: Tensor,
        *, add: bool, factor: float,
    ) -> None:  # fmt: skip
        """Sum what the chosen experts give, see MIXTURE; inner: a row for each of them."""
        down, slots = mixture.experts.down, len(chosen)
        rows = down.weight.rows // mixture.router.logits.weight.rows
        share = rows_of_task(self._runner, rows)
        record = np.zeros(1, MIXTURE)
        record[0] = (
            self.keep(self._products([(down, out)])), rows, chosen.data_ptr(), shares.data_ptr(), slots,
            inner.rows.data_ptr(), inner.rows.stride(0), inner.rounded.data_ptr(), inner.rounded.stride(0),
            out.data_ptr(), add, share, factor,
        )  # fmt: skip
        stage = self._runner.compiled(build_mixture)
        self.add((stage, -(-rows // share), self.keep(record), 0, 0))

    def attend(self, index: int, stages: Stages | DenseStages, layer: int) -> None:
        """The stages of one layer's attention, whose tasks depend on the tokens. layer: of a LAYER."""
        records = self.steps[index:].ctypes.data, layer, self._arena.address
        weights = self._layers[index]
        kind = type(stages), weights.kv_heads, weights.heads, weights.softmax.window
        self._alike.setdefault(kind, []).append((index, len(self._stages)))
        for function in stages:
            self.add((function, 0, *records))

    def tally(self, index: int, function: int, layer: int) -> None:
        """The stage behind a layer's attention that adds up what it attended to."""
        self.add((function, 1, self.steps[index:].ctypes.data, layer, self._arena.address))

    def finish(self) -> None:
        """All stages are there."""
        self.program = Program(np.array(self._stages, STAGES))
        self._groups = []
        for kind, found in self._alike.items():
            layers, first = np.array(found).T
            self._groups.append((*kind, layers, first[:, None] + np.arange(len(kind[0]._fields))))
        self._growths = {layer.growth[1] for layer in self._layers if layer.growth is not None}
        self._growing = [index for index, layer in enumerate(self._layers) if layer.growth is not None]
        self._capped = np.array([layer.softmax.softcap > 0 for layer in self._layers])
        self._heads = max(layer.heads for layer in self._layers)
        self._group = max(layer.heads // layer.kv_heads for layer in self._layers)
        self._head_dim = max(layer.head_dim for layer in self._layers)

    def most(self, length: int) -> int:
        """How many tokens behind so many in the cache one program may take, so that each is computed as it
        would be alone, with the same scaling and as many groups of ranks, and scratch memory is small.
        """
        budget, ranks = self.settings.budget, RANK_BYTES * self._heads * (length + LARGEST_STEP)
        most = min(LARGEST_STEP, max(1, MOST_SCRATCH // ranks))
        for growth in self._growths:
            most = min(most, growth - length % growth)
        groups = groups_of_segment(budget, length + 1)
        while groups_of_segment(budget, length + most) != groups:
            most -= 1
        return most

    def prepare(self, length: int) -> None:
        """Set what depends on the tokens in the cache."""
        tokens, settings = length + self.rows, self.settings
        segments, groups = -(-tokens // SEGMENT), groups_of_segment(settings.budget, tokens)
        self.steps["length"], self.steps["groups"] = length, groups
        self.steps["peak_room"] = segments * groups
        self.steps["budget"] = min(settings.budget, tokens)
        chosen = settings.budget < tokens
        by_error = settings.error is not None
        self.steps["compensated"] = settings.compensated and (chosen | (by_error & ~self._capped))
        for index in self._growing:
            self.steps["scaling"][index] = self._layers[index].scaling_at(length)
        for kind, kv_heads, heads, window, layers, places in self._groups:
            first = 0 if window is None else max(0, length + 1 - window)
            count = -(-tokens // SEGMENT) if kind is Stages else dense_segments(tokens, first)
            self.steps["segments"][layers] = self.steps["room"][layers] = count
            self.program.records["tasks"][places] = kind.tasks(kv_heads, heads * self.rows, count)
        self._arena.reserve(
            self._heads * self.rows, self._group * self.rows, segments, segments * groups,
            padded_dim(self._head_dim), self._head_dim, settings.budget,
        )  # fmt: skip

    def _products(
        self,
        parts: Sequence[tuple[Linear, Tensor]],
        inputs: Inputs | None = None,
        *,
        add: bool = False,
        factor: float = 1.0,
    ) -> np.ndarray:
        weights = [(linear.weight, linear.bias, out) for linear, out in parts]
        return products(self._runner, weights, add=add, factor=factor, inputs=inputs)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
