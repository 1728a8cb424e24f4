"""Merges an adapter into the weights of a GGUF file while they are placed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from adamas_kernels.blocks import BlockWeight, unpack
from torch import Tensor, nn

from adamas_cli.models.adapters import Adapter, Change, applied
from adamas_cli.models.filling import Placing
from adamas_cli.models.gguf.stored import stored

_BLOCK, _LARGEST = 32, 127  # numbers that share a scale, and the largest integer


class Merging:
    """Places linear layers like another placing, those changed by an adapter in 8 bits (Q8_0), or as numbers
    if `exact`.
    """

    def __init__(self, placing: Placing, adapter: Adapter, *, exact: bool) -> None:
        self._placing, self._adapter, self._exact = placing, adapter, exact
        self._changes: dict[str, Change] | None = None

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """See `Placing.linear`."""
        if self._changes is None:  # first layer placed: the model now has all its parameters
            self._changes = self._adapter.changes(model)
        if (change := self._changes.pop(f"{name}.weight", None)) is not None:
            numbers = applied(self._adapter, name, change, unpack(weight))
            weight = stored(numbers).block_weight if self._exact else in_8_bits(numbers)
        if bias is not None and (change := self._changes.pop(f"{name}.bias", None)) is not None:
            bias = applied(self._adapter, name, change, bias)
        self._placing.linear(model, name, weight, bias)

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """See `Placing.embedding`."""
        return self._placing.embedding(model, name, weight)

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """See `Placing.experts`."""
        return self._placing.experts(model, name, gate_up, down)

    def require_all_merged(self) -> None:
        """Raise ModelUnavailableError if the adapter changes anything but linear layers."""
        if self._changes:
            raise self._adapter.unfit(f"{next(iter(self._changes))} of a GGUF file stays as it is")


def in_8_bits(numbers: Tensor) -> BlockWeight:
    """A matrix in Q8_0, or in float32 if its rows are not whole blocks."""
    rows, columns = numbers.shape
    if columns % _BLOCK:
        return stored(numbers).block_weight
    blocks = numbers.view(rows, -1, _BLOCK)
    scales = (blocks.abs().amax(-1, keepdim=True) / _LARGEST).half()
    steps = scales.float()
    integers = torch.where(steps > 0, blocks / steps, 0).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    data = torch.cat([scales.view(torch.uint8), integers.view(torch.uint8)], -1)
    return BlockWeight("Q8_0", data.view(rows, -1), columns)
