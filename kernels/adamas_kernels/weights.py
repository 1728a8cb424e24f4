"""A whole-token decoder as data: the parts of its layers, their order and their weights.

Vectors are float32. A layer adds two branches, attention and an MLP, to its hidden state, one after the other
or both at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adamas_kernels.blocks import BlockWeight
from adamas_kernels.softmax import PLAIN, Softmax

# silu and its variants are `swish`: x sigmoid(alpha x).
ActivationKind = Literal["swish", "gelu", "gelu_tanh", "relu", "relu_squared"]
# Where the rows of an MLP's first products lie: no gate; gate and up in two weights; both in one, for each
# expert the gate's rows and then the others, or alternating row by row.
RowOrder = Literal["plain", "apart", "halves", "alternating"]
# How a router scores experts: by the softmax or the sigmoid of its logits, or like SparseMixer, each by the
# softmax over those within a tolerance of it.
Scoring = Literal["softmax", "sigmoid", "sparsemixer"]


@dataclass(frozen=True)
class Linear:
    """A weight in blocks, and its bias, [rows]."""

    weight: BlockWeight
    bias: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """RMSNorm, or LayerNorm if `centred`. weight: [size], or [heads, size] if each head has its own; bias has
    the same shape.
    """

    weight: Tensor
    eps: float
    bias: Tensor | None = None
    centred: bool = False


@dataclass(frozen=True)
class Activation:
    """What an MLP does between its products. limit: the maximum of gates; other numbers are clipped to
    [-limit, limit]. shift: added to the others before gates multiply them.
    """

    kind: ActivationKind
    alpha: float = 1.0
    limit: float | None = None
    shift: float = 0.0


@dataclass(frozen=True)
class Mlp:
    """down(activation(gate x) * up x), or down(activation(up x)) without gates.

    first: gate and up, or one weight with both, or up alone, see `order`; inner: numbers between the
    products. With experts, weights and biases hold one expert after the other.
    """

    first: Sequence[Linear]
    order: RowOrder
    inner: int
    down: Linear
    activation: Activation


@dataclass(frozen=True)
class Router:
    """Chooses the `choices` experts with the highest score plus correction, [experts].

    normalized: whether their shares add up to 1, before they are multiplied by `factor`. groups: experts are
    chosen only from the `kept_groups` groups whose two highest scores have the highest sum. tolerance: of
    SparseMixer.
    """

    logits: Linear
    choices: int
    scoring: Scoring
    normalized: bool
    factor: float = 1.0
    correction: Tensor | None = None
    groups: int = 1
    kept_groups: int = 1
    tolerance: float = 0.0


@dataclass(frozen=True)
class Mixture:
    """The sum of the chosen experts times their shares, plus an MLP for every token, times the sigmoid of its
    gate if it has one.
    """

    router: Router
    experts: Mlp
    shared: Mlp | None = None
    shared_gate: Linear | None = None


@dataclass(frozen=True)
class AttentionWeights:
    """The attention of one layer.

    inputs: products with the same vector; their outputs are queries, keys and values, one after the other, or
    `by_head`, side by side for each head. query_norm, key_norm: of each head, [head_dim], or of the whole
    vector, before the rotation or, with norms_last, after it. rotation: an index into the rotations of a
    step, or None; pairs: whether neighbours are rotated against each other, instead of halves. clip: limit of
    all outputs of `inputs`, before the rotation. softmax: its sinks are float32. growth: (a, n) multiplies
    the scaling of a token after m others by 1 + a log(1 + floor(m / n)).
    """

    inputs: Sequence[Linear]
    output: Linear
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    by_head: bool = False
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norms_last: bool = False
    rotation: int | None = 0
    pairs: bool = False
    clip: float | None = None
    softmax: Softmax = PLAIN
    growth: tuple[float, int] | None = None

    def scaling_at(self, length: int) -> float:
        """The scaling of the scores of a token after `length` others."""
        if self.growth is None:
            return self.scaling
        rate, tokens = self.growth
        return self.scaling * (1 + rate * math.log(1 + length // tokens))

    @property
    def step(self) -> int:
        """Numbers from one head to the next."""
        return 3 * self.head_dim if self.by_head else self.head_dim

    @property
    def places(self) -> tuple[int, int, int]:
        """Where queries, keys and values begin in the outputs of `inputs`."""
        key = self.head_dim if self.by_head else self.heads * self.head_dim
        return 0, key, key + (self.head_dim if self.by_head else self.kv_heads * self.head_dim)


@dataclass(frozen=True)
class LayerWeights:
    """One layer: hidden += after(branch(before(hidden))) for attention, then for the MLP; norms that are None
    do nothing.

    parallel: both branches start from the same hidden state; an MLP without its own norm then takes
    attention's normalized state. factor: multiplies the branches when they are added.
    """

    before_attention: Norm | None
    attention: AttentionWeights
    after_attention: Norm | None
    before_mlp: Norm | None
    mlp: Mlp | Mixture
    after_mlp: Norm | None
    parallel: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class DecoderWeights:
    """A model: embedding, from a token to its row [hidden] of any dtype; the layers; then norm and head.
    Logits are multiplied by `factor` and, with a soft cap c, become c tanh(logits / c).
    """

    embedding: Callable[[int], Tensor]
    hidden: int
    layers: Sequence[LayerWeights]
    norm: Norm
    head: Linear
    factor: float = 1.0
    softcap: float | None = None
