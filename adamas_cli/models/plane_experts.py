"""Experts of mixture models on an NVIDIA GPU, with weights kept in their file's bits, split into planes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from adamas_kernels.triton.experts import Experts, Gate
from adamas_kernels.triton.planes import PlaneWeight, halves, joinable, take_turns
from torch import Tensor

from adamas_cli.models.stacked_experts import StackedExperts

if TYPE_CHECKING:
    from adamas_kernels.triton.backend import TritonBackend

# transformers' names for the parameters of a `Gate`, and possible values of the last.
LIMITS, SLOPES, SHIFTS = ("limit", "swiglu_limit"), ("alpha", "swiglu_alpha"), (0.0, 1.0)
TRIED = (-8.0, -2.0, -0.4, 0.3, 1.0, 7.0)  # gate and up values that tell whether a gate is a known one


class PlaneExperts(StackedExperts):
    """The experts of a layer. backend: shared by the layers of a model."""

    def __init__(
        self, source: Any, gate_up: Sequence[PlaneWeight], down: PlaneWeight, backend: TritonBackend
    ) -> None:
        """gate_up: one weight with the rows of all experts, each in the source's order, or two, gates and
        ups. down: the rows of all experts' outputs.
        """
        super().__init__(source)
        bias = self.gate_up_bias
        if bias is not None and not self.alternating:
            bias = bias.unflatten(1, (2, -1)).transpose(1, 2).flatten(1).contiguous()
        gate = known_gate(source, self._gated_in_turn) or self._gated_in_turn
        self.experts = Experts(self.num_experts, self._in_turn(gate_up), down, bias, self.down_bias, gate)
        self.backend = backend

    @property
    def weight_count(self) -> int:
        """Numbers in its weights."""
        return sum(weight.count for weight in self._weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(weight.bytes for weight in self._weights)

    @property
    def _weights(self) -> list[PlaneWeight]:
        return [*self.experts.gate_up, self.experts.down]

    def forward(self, hidden_states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """hidden_states [tokens, hidden] -> the weighted sum of each token's chosen experts [tokens,
        choices]; shares: the weights.
        """
        return self.backend.mix(hidden_states, self.experts, chosen, shares)

    def _in_turn(self, gate_up: Sequence[PlaneWeight]) -> list[PlaneWeight]:
        """One weight with alternating rows of gates and ups, or two if their kinds differ."""
        if len(gate_up) == 1:
            return list(gate_up) if self.alternating else [take_turns(halves(gate_up[0], self.num_experts))]
        return [take_turns(gate_up)] if joinable(gate_up) else list(gate_up)

    def _gated_in_turn(self, inner: Tensor) -> Tensor:
        """The output of the source's gating for alternating gates and ups."""
        return self.gated(inner if self.alternating else torch.cat((inner[..., ::2], inner[..., 1::2]), -1))


def known_gate(source: Any, gated: Callable[[Tensor], Tensor]) -> Gate | None:
    """The `Gate` equal to `gated`, which takes alternating gates and ups; None if there is none. source: the
    module that may have its parameters.
    """
    for gate in _gates(source):
        beyond = [x * gate.limit for x in (-2, 2) if gate.limit < math.inf]
        tried = torch.tensor([*TRIED, *beyond], device="cpu")
        pairs = torch.cartesian_prod(tried, tried).flatten().unsqueeze(0)
        if torch.allclose(gate(pairs), gated(pairs), rtol=1e-5, atol=1e-6):
            return gate
    return None


def _gates(source: Any) -> Iterator[Gate]:
    limits, slopes = (
        [getattr(source, name) for name in names if isinstance(getattr(source, name, None), int | float)]
        for names in (LIMITS, SLOPES)
    )
    for limit, slope, shift in product((*limits, math.inf), (*slopes, 1.0), SHIFTS):
        yield Gate(float(limit), float(slope), shift)
