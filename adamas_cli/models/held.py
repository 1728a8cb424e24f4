"""Describes the weights of a model in memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from adamas_cli.models.reordered import Reordered

if TYPE_CHECKING:
    from torch import nn


def describe(model: nn.Module) -> str:
    """One line about a model's weights in few bits, or their absence."""
    sizes: Counter[str] = Counter()
    reordered = 0
    for module in model.modules():
        reordered += isinstance(module, Reordered)
        for name in ("packed", "planes"):
            weight = getattr(module, name, None)
            if weight is not None:
                sizes[weight.kind] += weight.bytes
    if not sizes:
        return "weights as they are in the model's files"
    total = sizes.total()
    shares = ", ".join(f"{size / total:.0%} {kind}" for kind, size in sizes.most_common())
    inputs = f"; {reordered} layers reorder their inputs" if reordered else ""
    return f"weights in blocks: {total / 1e6:,.0f} MB, {shares}{inputs}"
