"""Models over weights in blocks, for CPUs: those of a GGUF file as they are, others in 8 bits.

Embeddings and norms stay as they are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from adamas_kernels.blocks import BlockWeight
from adamas_kernels.cpu import CpuBackend
from torch import Tensor, nn

from adamas_cli.models.packed_experts import PackedExperts, quantize_experts
from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.stacked_experts import can_pack
from adamas_cli.progress import Progress

log = logging.getLogger(__name__)


class Blocks:
    """How weights of a GGUF file are kept for a CPU: where they are, in the mapped file."""

    def __init__(self, progress: Progress) -> None:
        self._backend = CpuBackend(progress.note)

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """Let a linear layer of a model, by its name, compute with a weight and a bias."""
        model.set_submodule(name, PackedLinear(weight, bias, self._backend))

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """Embeddings that are not read from the file become numbers."""
        return False

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """Let experts, by their name, compute with weights; False where they cannot."""
        source = model.get_submodule(name)
        if not can_pack(source):
            return False
        model.set_submodule(name, PackedExperts(source, gate_up, down, self._backend))
        return True


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
            model.set_submodule(name, PackedLinear(weight, module.bias, backend, module.in_features))
            advance(module.weight.numel())
        while experts:
            name, source = experts.popitem()
            size = sum(weight.numel() for weight in source.parameters())
            model.set_submodule(name, quantize_experts(source, backend))
            advance(size)
    if log.isEnabledFor(logging.INFO):
        progress.note(describe(model))


def describe(model: nn.Module) -> str:
    """One line about the weights of a model that are in blocks, or that there are none."""
    sizes: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, PackedLinear):
            sizes[module.packed.kind] += module.packed.bytes
    if not sizes:
        return "weights as they are in the model's files"
    total = sizes.total()
    shares = ", ".join(f"{size / total:.0%} {kind}" for kind, size in sizes.most_common())
    return f"weights in blocks: {total / 1e6:,.0f} MB, {shares}"
