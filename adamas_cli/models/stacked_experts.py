"""Common parts of experts of mixture models over quantized weights, on every device.

They replace every class that transformers' `use_experts_implementation` serves, except those without gates
and those with a norm after each expert.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

WEIGHTS = ("gate_up_proj", "down_proj")


class StackedExperts(nn.Module):
    """The experts of a layer, for inference; a subclass holds their weights."""

    def __init__(self, source: Any) -> None:
        """source: the replaced module, which gives up its weights but still computes the gating; its biases
        must be plain numbers.
        """
        super().__init__()
        self.num_experts = source.num_experts
        self.gate_up_bias, self.down_bias = (_bias(source, name) for name in WEIGHTS)
        self.alternating = not source.is_concatenated
        for name in WEIGHTS:
            delattr(source, name)
        self._source = [source]  # in a list, so that it is not a submodule

    def gated(self, inner: Tensor) -> Tensor:
        """The output of the source's gating, [..., 2 n] in its order -> [..., n]."""
        gated: Tensor = self._source[0]._apply_gate(inner)
        return gated


def can_pack(module: nn.Module) -> bool:
    """Whether a module is experts that `StackedExperts` can replace, with plain numbers as weights, or none
    yet.
    """
    parts = [getattr(module, name, None) for name in WEIGHTS]
    return (
        bool(getattr(module, "has_gate", False))
        and not getattr(module, "has_post_expert_norm", False)
        and all(isinstance(part, nn.Parameter) and part.is_floating_point() for part in parts)
    )


def widths(source: Any) -> tuple[int, int]:
    """Input widths of experts with stacked weights, and of their second products."""
    axis = 1 if source.is_transposed else 2
    return source.gate_up_proj.shape[axis], source.down_proj.shape[axis]


def _bias(source: Any, name: str) -> Tensor | None:
    return getattr(source, f"{name}_bias").detach() if source.has_bias else None
