"""Linear layers whose inputs are reordered.

GPTQ may quantize inputs by their importance. Inputs that share a scale are then scattered, and the weight
stores them together.
"""

from __future__ import annotations

from torch import Tensor, nn


class Reordered(nn.Module):
    """A linear layer over reordered inputs. order: int64 [in_features], the input for each column of its
    weight.
    """

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
    """Make a linear layer, by its name, take its inputs in this order."""
    model.set_submodule(name, Reordered(model.get_submodule(name), order))
