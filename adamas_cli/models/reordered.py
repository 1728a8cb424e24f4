"""Linear layers whose inputs are taken in another order.

GPTQ may quantize inputs by their importance; those that share a scale then lie apart, and are brought
together in the weight.
"""

from __future__ import annotations

from torch import Tensor, nn


class Reordered(nn.Module):
    """A linear layer over inputs in an order: int64 [in_features], for each column of its weight."""

    def __init__(self, layer: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        out: Tensor = self.layer(x[..., self.order])
        return out


def reorder(model: nn.Module, name: str, order: Tensor) -> None:
    """Let a linear layer of a model, by its name, take its inputs in an order."""
    model.set_submodule(name, Reordered(model.get_submodule(name), order))
