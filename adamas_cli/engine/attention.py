"""How answer tokens attend, and which models Adamas serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from adamas_kernels.contract import SparseSettings
from adamas_kernels.dispatch import BackendError, load, pick
from transformers import PreTrainedConfig

from adamas_cli.cache.cache import layer_types
from adamas_cli.cache.layer import FULL, SLIDING
from adamas_cli.cache.mode import Sparse
from adamas_cli.engine.choice import DENSE_LAYERS, auto_min_context, budget_for
from adamas_cli.errors import ModelUnavailableError, UsageError


@dataclass(frozen=True)
class AttentionSettings:
    """How answer tokens attend.

    kind: `adamas`, `full`, or `auto` to choose by the length of the context. sparse: its budget is replaced
    by `budget_for` the context where `budget_by_context` is set. backend: what computes sparse steps:
    `triton`, `cpu`, `torch`, or `auto` for the fastest that runs.
    """

    kind: str = "auto"
    sparse: SparseSettings = field(default_factory=SparseSettings)
    dense_layers: int = DENSE_LAYERS
    backend: str = "auto"
    budget_by_context: bool = False

    def resolve(
        self,
        context: int,
        token_bytes: int,
        device: torch.device,
        announce: Callable[[str], None] | None = None,
    ) -> tuple[Sparse | None, str | None]:
        """How to decode sparsely with a context of so many tokens, whose keys and values take `token_bytes`
        each in a layer, or None where full attention is better, and one line about a backend that is not the
        fastest there is.

        announce: told before a backend compiles. Raises UsageError where a named backend cannot run.
        """
        if self.kind == "full":
            return None, None
        try:
            name, reason = pick(self.backend, device)
        except BackendError as error:
            raise UsageError(f"{error}. Use `backend` auto.") from None
        sparse = replace(self.sparse, budget=budget_for(context)) if self.budget_by_context else self.sparse
        if self.kind == "auto" and context < auto_min_context(name, sparse.budget, token_bytes):
            return None, None
        return Sparse(sparse, load(name, announce)), reason


def unsupported_reason(config: PreTrainedConfig) -> str | None:
    """Why this module's attention would be wrong for a text model's config, or None where it is right."""
    others = sorted(set(layer_types(config)) - {FULL, SLIDING})
    if others:
        return f"it has {' and '.join(others)} layers"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are soft-capped"
    if getattr(config, "kv_lora_rank", None):
        return "it has multi-head latent attention"
    if config.model_type == "gpt_oss":
        return "its attention has learned sinks"
    return None


def refusal(reason: str) -> ModelUnavailableError:
    """The error for a model whose attention this module does not serve."""
    return ModelUnavailableError(f"Adamas attention does not serve this model: {reason}. Use `attn` full.")
