"""How answer tokens attend: the settings, and the decision for a model on a device."""

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
    KvPlace,
    ReadKind,
    Scorer,
)


@dataclass(frozen=True)
class AttentionSettings:
    """How documents are read, and how answer tokens attend.

    kind: `adamas`, `full`, or `auto` to choose by context length. read: `sparse`, `dense`, or `auto`
    likewise; reading: what sparse reading skips. sparse: with `budget_by_context`, its budget is replaced by
    one chosen for the context. backend: what computes sparse steps: `triton`, `cpu`, `torch`, or `auto` for
    the fastest that runs. cache_dtype, kv: see `DecodingSettings`.
    """

    kind: str = "auto"
    sparse: SparseSettings = field(default_factory=SparseSettings)
    dense_layers: int = DENSE_LAYERS
    backend: str = "auto"
    budget_by_context: bool = False
    read: str = "dense"
    reading: ReadSettings = field(default_factory=ReadSettings)
    cache_dtype: CacheDType = "auto"
    kv: KvPlace = "auto"

    @classmethod
    def of(cls, chosen: DecodingSettings) -> AttentionSettings:
        """The settings a user chose."""
        return cls(
            chosen.attn,
            sparse_settings(chosen, chosen.budget or SparseSettings.budget),
            chosen.dense_layers,
            chosen.backend,
            budget_by_context=chosen.budget is None,
            read=chosen.read,
            cache_dtype=chosen.cache_dtype,
            kv=chosen.kv,
        )

    def asked(self, prefill_chunk: int | None = None) -> DecodingSettings:
        """The input of a decision. prefill_chunk: tokens; None to choose by device."""
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
            kv=self.kv,
        )

    def resolve(self, decided: Attention, announce: Callable[[str], None] | None = None) -> Sparse | None:
        """How to decode sparsely, as decided; None with full attention.

        announce: called before a backend compiles.
        """
        if decided.backend is None or decided.budget is None:
            return None
        return Sparse(replace(self.sparse, budget=decided.budget), load(decided.backend, announce))


def sparse_settings(chosen: DecodingSettings, budget: int) -> SparseSettings:
    """The settings of a sparse layer, as a user chose. Raises UsageError for an invalid error bound."""
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
    """The decision for a model of this shape, with this many tokens, on a device. unserved: why Adamas does
    not serve it, where its shape does not tell.

    Raises UsageError if a named backend cannot run, and ModelUnavailableError if Adamas is requested but does
    not serve the model.
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
    """The backends that can compute sparse steps on a device, and why the others cannot."""
    return Backends(device.type, {name: obstacle(name, device) for name in BACKENDS})
