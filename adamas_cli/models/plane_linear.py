"""Modules of a model on an NVIDIA GPU whose weights stay in their file's own bits, split into planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from adamas_kernels.blocks import BlockWeight
from adamas_kernels.triton.planes import PlaneWeight, split
from torch import Tensor, nn

from adamas_cli.progress import Progress

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

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features] in the same number format."""
        return self.backend.linear(x, self.planes, self.bias)


class PlaneEmbedding(nn.Module):
    """`nn.Embedding` over a weight in planes: rows are unpacked when a token asks for them."""

    def __init__(self, weight: PlaneWeight, dtype: torch.dtype, backend: TritonBackend) -> None:
        super().__init__()
        self.planes = weight
        self.num_embeddings, self.embedding_dim = weight.rows, weight.columns
        self.dtype = dtype
        self.backend = backend

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [...] -> [..., embedding_dim]."""
        return self.backend.embed(tokens, self.planes, self.dtype)


def place_on_gpu(
    model: nn.Module,
    weights: Mapping[str, BlockWeight],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> None:
    """Give the linear layers and embeddings of these names their weights, in planes on a device.

    dtype: of what embeddings give, and of weights that are plain numbers in the file. A weight that several
    modules share is uploaded once. Biases and all other tensors are left as they are.
    """
    from adamas_kernels.triton.backend import TritonBackend

    backend = TritonBackend()
    placed: dict[int, PlaneWeight | Tensor] = {}
    total = sum(weight.bytes for weight in weights.values())
    with progress.task("loading weights onto the GPU", total, "bytes") as advance:
        for name, blocks in weights.items():
            place = blocks.data.data_ptr()
            if place not in placed:
                placed[place] = split(blocks, device)
            model.set_submodule(name, _module(model.get_submodule(name), placed[place], dtype, backend))
            advance(blocks.bytes)


def _module(
    old: nn.Module, weight: PlaneWeight | Tensor, dtype: torch.dtype, backend: TritonBackend
) -> nn.Module:
    """What takes the place of a linear layer or an embedding; one that does more keeps its class."""
    if isinstance(weight, PlaneWeight):
        if type(old) is nn.Linear:
            return PlaneLinear(weight, old.bias, backend)
        if type(old) is nn.Embedding:
            return PlaneEmbedding(weight, dtype, backend)
        weight = backend.embed(torch.arange(weight.rows, device=weight.device), weight, dtype)
    old.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    return old
