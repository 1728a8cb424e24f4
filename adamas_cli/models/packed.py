"""Models over weights in blocks, for CPUs: those of a GGUF file as they are, others in 8 bits.

Embeddings and norms stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from adamas_kernels.blocks import PLAIN, BlockWeight, unpack
from adamas_kernels.cpu import CpuBackend
from torch import Tensor, nn

from adamas_cli.models.held import describe
from adamas_cli.models.packed_experts import PackedExperts, quantize_experts
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.stacked_experts import can_pack
from adamas_cli.progress import Progress

log = logging.getLogger(__name__)


class Blocks:
    """How weights in blocks are kept for a CPU: as they are, those of a GGUF file where they are in it.

    rounds: whether weights that are plain numbers are rounded to 8 bits, as those of other models are.
    """

    def __init__(self, progress: Progress, *, rounds: bool) -> None:
        self._backend, self._rounds = CpuBackend(progress.note), rounds

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """Let a linear layer of a model, by its name, compute with a weight and a bias."""
        inputs, source = weight.columns, model.get_submodule(name)
        if self._rounds and weight.kind in PLAIN:
            weight = self._backend.quantize(weight.data.view(PLAIN[weight.kind]))
        dtype = source.weight.dtype if isinstance(source.weight, Tensor) else torch.float32
        model.set_submodule(name, PackedLinear(weight, bias, self._backend, inputs, dtype))

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """Let embeddings give rows of a weight; those of plain numbers become numbers."""
        if weight.kind in PLAIN:
            return False
        dtype = model.get_parameter(f"{name}.weight").dtype
        model.set_submodule(name, PackedEmbedding(weight, dtype))
        return True

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """Let experts, by their name, compute with weights; False where they cannot."""
        source = model.get_submodule(name)
        if not can_pack(source):
            return False
        model.set_submodule(name, PackedExperts(source, gate_up, down, self._backend))
        return True


class PackedEmbedding(nn.Module):
    """`nn.Embedding` over a weight in blocks, for inference: rows are unpacked when a token asks for them."""

    def __init__(self, weight: BlockWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows, self._dtype = weight, dtype
        self.num_embeddings, self.embedding_dim = weight.rows, weight.columns

    @property
    def weight(self) -> Tensor:
        """No numbers: for models that ask on which device and in which format their embeddings are."""
        return torch.empty(0, dtype=self._dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> rows [..., embedding_dim]."""
        tokens, places = torch.unique(ids, return_inverse=True)
        rows = BlockWeight(self._rows.kind, self._rows.data[tokens], self._rows.columns)
        return unpack(rows).to(self._dtype)[places]


def pack_model(model: nn.Module, progress: Progress) -> None:
    """Quantize the linear layers and experts of a model on the CPU that still have numbers as weights."""
    backend = CpuBackend(progress.note)
    # Not those of a subclass, which compute something else.
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.weight.is_floating_point()
    }
    experts = {name: module for name, module in model.named_modules() if can_pack(module)}
    total = sum(module.weight.numel() for module in linears.values())
    total += sum(weight.numel() for module in experts.values() for weight in module.parameters())
    with progress.task("packing weights for this CPU", total, "weights") as advance:
        while linears:  # each is let go when it is packed
            name, module = linears.popitem()
            weight = backend.quantize(module.weight.detach())
            packed = PackedLinear(weight, module.bias, backend, module.in_features, module.weight.dtype)
            model.set_submodule(name, packed)
            advance(module.weight.numel())
        while experts:
            name, source = experts.popitem()
            size = sum(weight.numel() for weight in source.parameters())
            model.set_submodule(name, quantize_experts(source, backend))
            advance(size)
    if log.isEnabledFor(logging.INFO):
        progress.note(describe(model))
