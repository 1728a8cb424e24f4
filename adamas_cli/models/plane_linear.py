"""Modules of a model on an NVIDIA GPU, with weights kept in their file's bits, split into planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from adamas_kernels.blocks import BlockWeight
from adamas_kernels.triton.plane_product import takes_integers
from adamas_kernels.triton.plane_tiles import takes_tiles
from adamas_kernels.triton.planes import PLAIN, PlaneWeight, split
from torch import Tensor, nn

from adamas_cli.models.plane_experts import PlaneExperts
from adamas_cli.models.stacked_experts import can_pack

if TYPE_CHECKING:
    from adamas_kernels.triton.backend import TritonBackend


class PlaneLinear(nn.Module):
    """`nn.Linear` over a weight in planes, for inference. backend: shared by the layers of a model."""

    def __init__(self, weight: PlaneWeight, bias: Tensor | None, backend: TritonBackend) -> None:
        super().__init__()
        self.planes = weight
        self.in_features, self.out_features = weight.columns, weight.rows
        self.bias = bias
        self.backend = backend

    @property
    def weight_count(self) -> int:
        """Numbers in its weight."""
        return self.planes.count

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weight."""
        return self.planes.bytes

    def takes_integers(self, dtype: torch.dtype) -> bool:
        """Whether a vector of this number format is rounded for it, which the preceding norm may do."""
        return takes_integers(dtype, self.planes)

    def takes_arranged(self, dtype: torch.dtype) -> bool:
        """The same for a few rows, which are arranged for it."""
        return takes_tiles(dtype, self.planes)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the same number format."""
        return self.backend.linear(x, self.planes, self.bias)


class PlaneEmbedding(nn.Module):
    """`nn.Embedding` over a weight in planes: rows are unpacked when a token needs them."""

    def __init__(self, weight: PlaneWeight, dtype: torch.dtype, backend: TritonBackend) -> None:
        super().__init__()
        self.planes = weight
        self.num_embeddings, self.embedding_dim = weight.rows, weight.columns
        self.dtype = dtype
        self.backend = backend

    @property
    def weight_count(self) -> int:
        """Numbers in its weight."""
        return self.planes.count

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [...] -> [..., embedding_dim]."""
        return self.backend.embed(tokens, self.planes, self.dtype)


class Planes:
    """How weights in blocks are kept on a GPU; embeddings that are also the head are uploaded once.

    dtype: of embedding outputs, of biases, and of weights that are plain numbers in the file.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        from adamas_kernels.triton.backend import TritonBackend

        self._backend = TritonBackend()
        self._dtype, self._device = dtype, device
        # By address in memory, which is unique while their blocks are kept.
        self._embeddings: dict[int, tuple[BlockWeight, PlaneWeight]] = {}

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """Make a linear layer, by its name, compute with a weight and a bias."""
        _, kept = self._embeddings.get(weight.data.data_ptr()) or (weight, split(weight, self._device))
        bias = None if bias is None else bias.to(self._device, self._dtype)
        if isinstance(kept, PlaneWeight):
            model.set_submodule(name, PlaneLinear(kept, bias, self._backend))
            return
        module = model.get_submodule(name)
        module.weight = nn.Parameter(kept.to(self._dtype), requires_grad=False)
        if bias is not None:
            module.bias = nn.Parameter(bias, requires_grad=False)

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """Make embeddings return rows of a weight; False if they must be numbers."""
        kept = split(weight, self._device)
        if isinstance(kept, PlaneWeight):
            self._embeddings[weight.data.data_ptr()] = weight, kept
            model.set_submodule(name, PlaneEmbedding(kept, self._dtype, self._backend))
            return True
        return False

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """Make experts, by their name, compute with these weights; False if these must be numbers."""
        source = model.get_submodule(name)
        if not can_pack(source) or any(weight.kind in PLAIN for weight in (*gate_up, down)):
            return False
        parts = [self._planes(weight) for weight in gate_up]
        model.set_submodule(name, PlaneExperts(source, parts, self._planes(down), self._backend))
        return True

    def _planes(self, weight: BlockWeight) -> PlaneWeight:
        """The planes of a weight in blocks."""
        planes = split(weight, self._device)
        assert isinstance(planes, PlaneWeight)
        return planes
