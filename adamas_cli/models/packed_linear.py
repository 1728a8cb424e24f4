"""Linear layers over weights in blocks, for CPUs."""

from __future__ import annotations

import torch
from adamas_kernels.blocks import BlockWeight, unpack
from adamas_kernels.cpu import CpuBackend
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """`nn.Linear` with a weight in blocks, for inference. backend: shared by the layers of a model."""

    def __init__(
        self,
        weight: BlockWeight,
        bias: Tensor | None,
        backend: CpuBackend,
        inputs: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """inputs: of the layer, if the weight has extra zero columns. dtype: the model's compute format."""
        super().__init__()
        self.packed = backend.ready(weight)
        self.in_features, self.out_features = weight.columns if inputs is None else inputs, weight.rows
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.backend, self._dtype = backend, dtype

    @property
    def weight(self) -> Tensor:
        """Its numbers, [out_features, in_features], unpacked on each access: for layers that compute with
        them without calling this one.
        """
        return unpack(self.packed)[:, : self.in_features].to(self._dtype)

    @property
    def weight_count(self) -> int:
        """Numbers in its weight."""
        return self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weight."""
        return self.packed.bytes

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the same number format."""
        return self.backend.linear(x, self.packed, self.bias)
