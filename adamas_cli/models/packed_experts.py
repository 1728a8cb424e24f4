"""Experts of mixture models over weights in blocks, for CPUs: a token reads only its chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from adamas_kernels.blocks import BlockWeight
from adamas_kernels.cpu import CpuBackend
from adamas_kernels.cpu.backend import FEW_ROWS
from torch import Tensor, nn

from adamas_cli.models.packed_linear import PackedLinear
from adamas_cli.models.stacked_experts import WEIGHTS, StackedExperts, widths


class PackedExperts(StackedExperts):
    """The experts of a layer."""

    def __init__(
        self, source: Any, gate_up: Sequence[BlockWeight], down: BlockWeight, backend: CpuBackend
    ) -> None:
        """gate_up: one weight with the rows of all experts, each in the source's order, or two, gates and
        ups. down: the rows of all experts' outputs.
        """
        hidden, inner = widths(source)
        super().__init__(source)
        self.gate_up = nn.ModuleList(PackedLinear(weight, None, backend, hidden) for weight in gate_up)
        self.down = PackedLinear(down, None, backend, inner)
        self.backend = backend

    def forward(self, hidden_states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """hidden_states [tokens, hidden] -> the weighted sum of each token's chosen experts [tokens,
        choices]; shares: the weights.
        """
        out = torch.zeros_like(hidden_states, dtype=torch.float32)
        if len(hidden_states) <= FEW_ROWS:
            for token, (experts, share) in enumerate(zip(chosen.tolist(), shares.float(), strict=True)):
                out[token] = self._of_one(hidden_states[token].float(), experts, share)
        else:
            for expert in chosen.unique().tolist():
                tokens, places = torch.where(chosen == expert)
                found = self._of_many(hidden_states[tokens], expert).float()
                out.index_add_(0, tokens, found * shares[tokens, places, None].float())
        return out.to(hidden_states.dtype)

    def _of_one(self, x: Tensor, experts: list[int], shares: Tensor) -> Tensor:
        """The weighted sum of some experts' outputs for one token, float32."""
        parts = [self._rows(layer, expert) for layer in self.gate_up for expert in experts]
        found = self.backend.multiply_each(x, parts).view(len(self.gate_up), len(experts), -1)
        inner = self._joined(list(found))
        if self.gate_up_bias is not None:
            inner = inner + self.gate_up_bias[experts].float()
        inner = self.gated(inner) * shares[:, None]
        total = self.backend.add_products(inner, [self._rows(self.down, expert) for expert in experts])
        return total if self.down_bias is None else total + shares @ self.down_bias[experts].float()

    def _of_many(self, x: Tensor, expert: int) -> Tensor:
        """One expert's outputs for some tokens."""
        parts = [self.backend.linear(x, self._rows(layer, expert)) for layer in self.gate_up]
        inner = self._joined(parts)
        if self.gate_up_bias is not None:
            inner = inner + self.gate_up_bias[expert].to(x.dtype)
        bias = None if self.down_bias is None else self.down_bias[expert].float()
        return self.backend.linear(self.gated(inner), self._rows(self.down, expert), bias)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Outputs in the source's order."""
        if len(parts) == 1:
            return parts[0]
        return torch.stack(parts, -1).flatten(-2) if self.alternating else torch.cat(parts, -1)

    def _rows(self, layer: Any, expert: int) -> BlockWeight:
        rows = layer.out_features // self.num_experts
        weight: BlockWeight = layer.packed
        return weight.part(expert * rows, (expert + 1) * rows)


def quantize_experts(source: Any, backend: CpuBackend) -> PackedExperts:
    """Experts with their weights in blocks of 8 bits."""
    weights = []
    for name in WEIGHTS:
        weight = getattr(source, name).detach()
        rows = weight.transpose(1, 2) if source.is_transposed else weight
        weights.append(backend.quantize(rows.flatten(0, 1)))
    return PackedExperts(source, weights[:1], weights[1], backend)
