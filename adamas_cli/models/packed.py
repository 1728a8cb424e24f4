"""Models over weights in blocks, for CPUs: those of a GGUF file unchanged, others in 8 bits.

Embeddings and norms stay unchanged.
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
    """How weights in blocks are kept for a CPU: unchanged, those of a GGUF file inside it.

    rounds: whether weights that are plain numbers are rounded to 8 bits, as for other models. in_bytes: see
    `LoadedModel`; None for what suits the CPU's features.
    """

    def __init__(self, progress: Progress, *, rounds: bool, in_bytes: bool | None = None) -> None:
        self._backend, self._rounds = CpuBackend(progress.note, rounds=in_bytes), rounds

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """Make a linear layer, by its name, compute with a weight and a bias."""
        inputs, source = weight.columns, model.get_submodule(name)
        if self._rounds and weight.kind in PLAIN:
            weight = self._backend.quantize(weight.data.view(PLAIN[weight.kind]))
        dtype = source.weight.dtype if isinstance(source.weight, Tensor) else torch.float32
        model.set_submodule(name, PackedLinear(weight, bias, self._backend, inputs, dtype))

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """Make embeddings return rows of a weight; plain numbers stay numbers."""
        if weight.kind in PLAIN:
            return False
        dtype = model.get_parameter(f"{name}.weight").dtype
        model.set_submodule(name, PackedEmbedding(weight, dtype))
        return True

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """Make experts, by their name, compute with these weights; False if they cannot."""
        source = model.get_submodule(name)
        if not can_pack(source):
            return False
        model.set_submodule(name, PackedExperts(source, gate_up, down, self._backend))
        return True


class PackedEmbedding(nn.Module):
    """`nn.Embedding` over a weight in blocks, for inference: rows are unpacked when a token needs them."""

    def __init__(self, weight: BlockWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows, self._dtype = weight, dtype
        self.num_embeddings, self.embedding_dim = weight.rows, weight.columns

    @property
    def weight(self) -> Tensor:
        """Empty: for models that ask for the device and format of their embeddings."""
        return torch.empty(0, dtype=self._dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [...] -> rows [..., embedding_dim]."""
        tokens, places = torch.unique(ids, return_inverse=True)
        rows = BlockWeight(self._rows.kind, self._rows.data[tokens], self._rows.columns)
        return unpack(rows).to(self._dtype)[places]


def pack_model(model: nn.Module, progress: Progress, *, in_bytes: bool | None = None) -> None:
    """Quantize a CPU model's linear layers and experts that still have numbers as weights. in_bytes: as in
    `Blocks`.
    """
    backend = CpuBackend(progress.note, rounds=in_bytes)
    # Not subclasses, which compute something else.
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.weight.is_floating_point()
    }
    experts = {name: module for name, module in model.named_modules() if can_pack(module)}
    total = sum(module.weight.numel() for module in linears.values())
    total += sum(weight.numel() for module in experts.values() for weight in module.parameters())
    with progress.task("packing weights for this CPU", total, "weights") as advance:
        while linears:  # each is freed once packed
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
