"""The contract of Adamas decode attention: settings, checks and the whole step, for any backend.

codebook = fit_codebook(first_keys)                     # once per layer, from the first chunk
codes, scales = encode_keys(keys, codebook)             # as keys enter the cache
out = decode_attention(q, cache_view, scaling, settings)  # each new token
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adamas_kernels import reference
from adamas_kernels.reference import Codebook

SCORERS = ("dot", "manhattan")


@dataclass(frozen=True)
class SparseSettings:
    """What one sparse layer does in a decode step.

    budget: tokens each query head attends to, forced ones included.
    scorer: `dot` (int8 query against 2-bit keys) or `manhattan` (the paper's: 2-bit query against 2-bit
    keys).
    edge: fixed outer edge of the codes, or None for edges from the data.
    sinks, recents: first and last tokens that are always attended to.
    compensate: give the estimated softmax mass of the other tokens to the mean of their values; `dot` only,
        because a Manhattan distance is no estimate of a score.
    """

    budget: int = 128
    scorer: str = "dot"
    edge: float | None = None
    sinks: int = 4
    recents: int = 16
    compensate: bool = True

    def __post_init__(self) -> None:
        if self.scorer not in SCORERS:
            raise ValueError(f"scorer must be one of {', '.join(SCORERS)}, not {self.scorer!r}")
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1, not {self.budget}")

    @property
    def forced(self) -> tuple[int, int]:
        """Sinks and recents, the query's own token among the latter; together at most half of a small
        budget.
        """
        quarter = max(1, self.budget // 4)
        return min(self.sinks, quarter), max(1, min(self.recents, quarter))

    @property
    def centred(self) -> bool:
        """Whether keys are coded relative to their mean: always but for the paper's own setting of fixed
        edges.
        """
        return self.edge is None


@dataclass(frozen=True)
class LayerView:
    """The cache of one layer as a decode step sees it.

    keys, values: [B, K, S, D]; codes: int32 [B, K, S, W]; scales: float16 [B, K, S]; value_sum: float32 [B,
    K, D].
    """

    keys: Tensor
    values: Tensor
    codes: Tensor
    scales: Tensor
    value_sum: Tensor
    codebook: Codebook


@dataclass(frozen=True)
class LayerCache:
    """The buffers of one layer, longer than what is filled, and how many tokens that is.

    keys, values: [B, K, C, D]; codes: int32 [B, K, C, W]; scales: float16 [B, K, C]; value_sum: float32 [B,
    K, D];
    length: int32 [1], on the buffers' device. The last dimension of keys, values and scales is contiguous.
    """

    keys: Tensor
    values: Tensor
    codes: Tensor
    scales: Tensor
    value_sum: Tensor
    codebook: Codebook
    length: Tensor

    def view(self) -> LayerView:
        """What is filled; waits for the device."""
        seen = slice(0, int(self.length))
        keys, values, codes, scales = (
            x[:, :, seen] for x in (self.keys, self.values, self.codes, self.scales)
        )
        return LayerView(keys, values, codes, scales, self.value_sum, self.codebook)


def fit_codebook(keys: Tensor, settings: SparseSettings) -> Codebook:
    """Fix a layer's codebook from its first keys [B, K, N, D]."""
    return reference.fit_codebook(keys, settings.edge, settings.centred)


def encode_keys(keys: Tensor, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """Encode keys [B, K, N, D] -> (codes int32 [B, K, N, W], scales float16 [B, K, N])."""
    return reference.encode_keys(keys, codebook)


def decode_attention(queries: Tensor, cache: LayerView, scaling: float, settings: SparseSettings) -> Tensor:
    """Attend from the newest N tokens, queries [B, H, N, D], whose keys are already in the cache.

    Returns [B, H, N, D] in the queries' dtype. With `budget >= S` this is full attention.
    Raises ValueError where the shapes do not fit together.
    """
    kv_heads, size = cache.keys.shape[1:3]
    if queries.shape[1] % kv_heads:
        raise ValueError(f"{queries.shape[1]} query heads do not divide into groups of {kv_heads} KV heads")
    if queries.shape[2] > size:
        raise ValueError(f"{queries.shape[2]} new tokens, but only {size} keys in the cache")
    if settings.scorer == "dot":
        query, step = reference.encode_query(queries)
        rank = reference.rank_by_dot(query, cache.codes, cache.scales)
    else:
        rank = -reference.manhattan(queries, cache.codes, settings.edge).float()
    index = reference.select(rank, settings.budget, *settings.forced)
    out, lse = reference.attend(queries, cache.keys, cache.values, index, scaling)
    if settings.compensate and settings.scorer == "dot" and settings.budget < size:
        rest, log_mass = reference.rest_of_softmax(
            queries, rank * step.unsqueeze(-1), index, cache.codebook, cache.values, cache.value_sum, scaling
        )
        out, _ = reference.merge(out, lse, rest, log_mass)
    return out.to(queries.dtype)
