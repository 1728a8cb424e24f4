"""The program of a decode step of one or a few tokens: the stages of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from adamas_kernels.cpu.inner import KINDS as ACTIVATIONS
from adamas_kernels.cpu.inner import build_inner
from adamas_kernels.cpu.joined import build_joined
from adamas_kernels.cpu.linear import Inputs, products, rows_of_task
from adamas_kernels.cpu.mixture import SCORINGS, build_mixture, build_route
from adamas_kernels.cpu.multiply import build_multiply
from adamas_kernels.cpu.norm_rope import build_norm
from adamas_kernels.cpu.records import INNER, MIXTURE, NORM, ROUTE, STAGES
from adamas_kernels.cpu.runner import Runner, Stage
from adamas_kernels.cpu.tasks import Program
from adamas_kernels.weights import Linear, Mixture, Mlp, Norm, Router


class StepProgram:
    """Stages are added in order; after `finish` they run as `program`; call `prepare` before each run.

    Vectors of its `rows` tokens are [rows, padded], and their memory extends to whole TILEs. attention:
    STAGES [layers, stages, sequences], which may change between runs. All arguments must live as long as the
    program.
    """

    def __init__(self, runner: Runner, rows: int = 1, attention: np.ndarray | None = None) -> None:
        self.rows = rows
        self._attention = np.zeros((0, 0, 0), STAGES) if attention is None else attention
        self._places: list[list[int]] = []  # indices of attention's stages, by layer
        self._runner = runner
        self._stages: list[Stage] = []
        self._records: list[np.ndarray] = []  # kept alive, so that their addresses stay valid
        self._inputs: list[Inputs] = []

    def keep(self, record: np.ndarray) -> int:
        """Keep a record as long as the program, and return its address."""
        self._records.append(record)
        return int(record.ctypes.data)

    def add(self, stage: Stage) -> None:
        """Add the next stage."""
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
        """Add norms of vectors, one per token: (norm, x, out) each; x and out may be the same. total: the
        vectors they are added to.
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
        """The current vectors, [rows, numbers], in whole blocks, as inputs of products. They are rounded once
        for all these products.
        """
        inputs = Inputs(self._runner, x.view(-1, x.shape[-1]))
        assert inputs.rows.data_ptr() == x.data_ptr()
        self._inputs.append(inputs)
        self.add(inputs.stage)
        return inputs

    def multiply(
        self, x: Inputs, parts: Sequence[tuple[Linear, Tensor]], *, add: bool = False, factor: float = 1.0
    ) -> None:
        """Add products of linear layers with x, one vector or one per token, written or added to equally many
        outputs each.
        """
        records = self._products(parts, x, add=add, factor=factor)
        tasks = int(records["tasks"].sum())
        self.add((self._runner.compiled(build_multiply), tasks, self.keep(records), *x.addresses()))

    def first_products(self, x: Inputs, records: Sequence[np.ndarray]) -> None:
        """Add the part of MLPs before their last products, see `inner_record`."""
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
        """See INNER. out: float32 [slots, padded], one row per `chosen` expert, int32 [slots], or per row of
        x.
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
        """Sum the outputs of the chosen experts, see MIXTURE; inner: one row per expert."""
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

    def attend(self, index: int) -> None:
        """Add the stages of one layer's attention, each for all sequences together."""
        joined = self._runner.compiled(build_joined)
        self._places.append([])
        for stages in self._attention[index]:
            self._places[-1].append(len(self._stages))
            self.add((joined, 0, stages.ctypes.data, 0, 0))

    def finish(self) -> None:
        """Build the program once all stages are added."""
        self.program = Program(np.array(self._stages, STAGES))
        self._attending = np.array(self._places)

    def prepare(self) -> None:
        """Update the number of attention's tasks."""
        self.program.records["tasks"][self._attending] = self._attention["tasks"].sum(-1)

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
