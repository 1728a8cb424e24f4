"""How answer tokens attend: the settings, and what is decided of them for a model on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from adamas_kernels.contract import SparseSettings
from adamas_kernels.dispatch import BACKENDS, load, obstacle
from adamas_kernels.reading import ReadSettings

from adamas_cli.cache.mode import Sparse
from adamas_cli.models.shape import ModelShape
from adamas_cli.planning.decision import Attention, Backends, check_error, decide_attention
from adamas_cli.settings import (
    DENSE_LAYERS,
    AttentionKind,
    BackendName,
    CacheDType,
    DecodingSettings,
    ReadKind,
    Scorer,
)


@dataclass(frozen=True)
class AttentionSettings:
    """How documents are read, and how answer tokens attend.

    kind: `adamas`, `full`, or `auto` to choose by the length of the context. read: `sparse`, `dense`, or
    `auto` in the same way; reading: what sparse reading leaves out. sparse: its budget is replaced
    by one for the context where `budget_by_context` is set. backend: what computes sparse steps:
    `triton`, `cpu`, `torch`, or `auto` for the fastest that runs. cache_dtype: see `DecodingSettings`.
    """

    kind: str = "auto"
    sparse: SparseSettings = field(default_factory=SparseSettings)
    dense_layers: int = DENSE_LAYERS
    backend: str = "auto"
    budget_by_context: bool = False
    read: str = "dense"
    reading: ReadSettings = field(default_factory=ReadSettings)
    cache_dtype: CacheDType = "auto"

    @classmethod
    def of(cls, chosen: DecodingSettings) -> AttentionSettings:
        """Those that a user chose."""
        return cls(
            chosen.attn,
            sparse_settings(chosen, chosen.budget or SparseSettings.budget),
            chosen.dense_layers,
            chosen.backend,
            budget_by_context=chosen.budget is None,
            read=chosen.read,
            cache_dtype=chosen.cache_dtype,
        )

    def asked(self, prefill_chunk: int | None = None) -> DecodingSettings:
        """What a decision is made from; prefill_chunk: tokens, None to go by the device."""
        return DecodingSettings(
            attn=cast(AttentionKind, self.kind),
            read=cast(ReadKind, self.read),
            budget=None if self.budget_by_context else self.sparse.budget,
            error=self.sparse.error or 0.0,
            scorer=cast(Scorer, self.sparse.scorer),
            dense_layers=self.dense_layers,
            backend=cast(BackendName, self.backend),
            prefill_chunk=prefill_chunk,
            cache_dtype=self.cache_dtype,
        )

    def resolve(self, decided: Attention, announce: Callable[[str], None] | None = None) -> Sparse | None:
        """How to decode sparsely as was decided, or None with full attention.

        announce: told before a backend compiles.
        """
        if decided.backend is None or decided.budget is None:
            return None
        return Sparse(replace(self.sparse, budget=decided.budget), load(decided.backend, announce))


def sparse_settings(chosen: DecodingSettings, budget: int) -> SparseSettings:
    """What a sparse layer does, as a user chose. Raises UsageError for an error that has no meaning."""
    check_error(chosen)
    return SparseSettings(budget=budget, scorer=chosen.scorer, error=chosen.error or None)


def decide_for(
    shape: ModelShape,
    dtype: torch.dtype,
    device: torch.device,
    asked: DecodingSettings,
    context: int,
    unserved: str | None = None,
) -> Attention:
    """What is decided about a model of this shape, with this many tokens, on a device. unserved: why Adamas
    does not serve it, where its shape does not tell.

    Raises UsageError where a named backend cannot run, and ModelUnavailableError where Adamas is asked for
    and does not serve the model.
    """
    return decide_attention(
        asked,
        context,
        backends_of(device),
        obstacle=unserved or shape.obstacle,
        dense=shape.dense_on(device.type),
        dense_reading=shape.dense_reading,
        unmeasured=shape.unmeasured,
        token_bytes=shape.token_bytes(dtype.itemsize),
    )


def backends_of(device: torch.device) -> Backends:
    """What computes sparse steps on a device, and what cannot."""
    return Backends(device.type, {name: obstacle(name, device) for name in BACKENDS})
