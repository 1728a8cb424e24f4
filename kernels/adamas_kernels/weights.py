"""The weights of a model as a decoder of whole tokens takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from adamas_kernels.blocks import BlockWeight


@dataclass(frozen=True)
class Linear:
    """A weight in blocks, and its bias, float32 [rows]."""

    weight: BlockWeight
    bias: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One layer: norms are float32 [hidden], those of heads [head_dim]."""

    attention_norm: Tensor
    query: Linear
    key: Linear
    value: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class DecoderWeights:
    """A model: embedding, from a token to its row [hidden] of any number format; the layers; norm and head
    behind them.
    """

    embedding: Callable[[int], Tensor]
    hidden: int
    layers: Sequence[LayerWeights]
    norm: Tensor
    head: Linear
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float
