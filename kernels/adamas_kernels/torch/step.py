"""The step in plain torch, straight from the specification: correct on every device, fast on none."""

from __future__ import annotations

import torch
from torch import Tensor

from adamas_kernels import reference
from adamas_kernels.contract import LayerCache, LayerView, SparseSettings, equal_length
from adamas_kernels.packed import kept_sum, write
from adamas_kernels.softmax import PLAIN, Softmax


def append(keys: Tensor, values: Tensor, cache: LayerCache) -> LayerView:
    """Append keys and values [B, K, N, D] after `cache.length` tokens; returns a view up to the new ones."""
    start = equal_length(cache.length)
    end = start + keys.shape[2]
    new = slice(start, end)
    write(cache.keys[:, :, new], keys, cache.centre)
    write(cache.values[:, :, new], values)
    cache.codes[:, :, new], cache.scales[:, :, new] = reference.encode_keys(keys, cache.codebook)
    cache.value_sum += kept_sum(cache.values[:, :, new], values)
    return cache.view(end)


def attend_newest(
    queries: Tensor,
    cache: LayerView,
    scaling: float,
    settings: SparseSettings,
    tally: Tensor | None = None,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Attend from the newest N tokens, queries [B, H, N, D], whose keys are already in the cache.

    Returns the output [B, H, N, D] in the queries' dtype and its log-sum-exp float32 [B, H, N]. With `budget
    >= S` this is full attention.
    """
    rank = rank_by_codes(queries, cache, settings)
    out, lse, index = attend_ranked(queries, cache, rank, scaling, settings, softmax)
    if tally is not None:
        _count(queries, cache.keys, index, scaling, softmax, lse, tally)
    return out, lse


def rank_by_codes(queries: Tensor, cache: LayerView, settings: SparseSettings) -> Tensor:
    """Ranks of all tokens by the settings' scorer, float32 [B, H, N, S]; higher is nearer."""
    rotated = reference.rotate_queries(queries, cache.codebook)
    if settings.scorer == "dot":
        query, _ = reference.encode_query(rotated)
        return reference.rank_by_dot(query, cache.codes, cache.scales)
    return -reference.manhattan(rotated, cache.codes, settings.edge).float()


def attend_ranked(
    queries: Tensor,
    cache: LayerView,
    rank: Tensor,
    scaling: float,
    settings: SparseSettings,
    softmax: Softmax = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend to the tokens of highest rank, float32 [B, H, N, S], and compensate for the others.

    Returns the output [B, H, N, D] in the queries' dtype, its log-sum-exp, and the positions of `select`.
    """
    reaching, settings = None, settings.under(softmax)
    _, step = reference.encode_query(reference.rotate_queries(queries, cache.codebook))
    if settings.error is not None:
        reaching = reference.reaches_error(
            queries, cache.keys, rank, step, cache.codebook, scaling, settings.forced, settings.error
        )
    index = reference.select(rank, settings.budget, *settings.forced, reaching)
    out, lse = reference.attend(queries, cache.keys, cache.values, index, scaling, softmax)
    if settings.compensated and (settings.budget < cache.keys.shape[2] or settings.error is not None):
        rest, log_mass = reference.rest_of_softmax(
            queries, rank * step.unsqueeze(-1), index, cache.codebook, cache.values, cache.value_sum, scaling,
            softmax,
        )  # fmt: skip
        out, lse = reference.merge(out, lse, rest, log_mass)
    out, lse = softmax.with_sinks(out, lse)
    return out.to(queries.dtype), lse, index


def _count(
    queries: Tensor,
    keys: Tensor,
    index: Tensor,
    scaling: float,
    softmax: Softmax,
    lse: Tensor,
    tally: Tensor,
) -> None:
    """Add 1 and the softmax weight to tally, float32 [B, 2, C], at the positions of `index` [B, H, N, k]."""
    scores = (reference.gather(keys, index) @ queries.float().unsqueeze(-1)).squeeze(-1) * scaling
    scores = softmax.capped(scores)
    visible = index <= reference.own_positions(queries.shape[2], keys.shape[2], keys.device)
    weight = torch.where(visible, (scores - lse.unsqueeze(-1)).exp(), 0)
    flat = torch.where(visible, index, 0).flatten(1)
    tally[:, 0].scatter_add_(1, flat, visible.float().flatten(1))
    tally[:, 1].scatter_add_(1, flat, weight.flatten(1))
