"""Adamas as an attention implementation of transformers, registered for a scope and undone afterwards.

No forward is rewritten: every model that calls transformers' attention interface hands over q, k, v after
RoPE, with KV heads not repeated. The cache travels with the call as the keyword argument `adamas_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from adamas_kernels.dispatch import BACKENDS, load, obstacle
from adamas_kernels.ops import SparseSettings
from adamas_kernels.prefill import chunk_attention
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adamas_cli.engine.cache import AdamasCache
from adamas_cli.engine.heads import token_bytes
from adamas_cli.engine.layers import FullLayer, SparseDecoding
from adamas_cli.models.shape import attention_obstacle
from adamas_cli.planning.decision import Attention, Backends, decide_attention, refusal
from adamas_cli.settings import DENSE_LAYERS, AttentionKind, BackendName, DecodingSettings

NAME = "adamas"
# What some models pass to change the scores or the softmax; ignoring one would be silently wrong.
SCORE_EXTRAS = ("softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class AttentionSettings:
    """How answer tokens attend.

    kind: `adamas`, `full`, or `auto` to choose by the length of the context. sparse: its budget is replaced
    by one for the context where `budget_by_context` is set. backend: what computes sparse steps:
    `triton`, `cpu`, `torch`, or `auto` for the fastest that runs.
    """

    kind: str = "auto"
    sparse: SparseSettings = field(default_factory=SparseSettings)
    dense_layers: int = DENSE_LAYERS
    backend: str = "auto"
    budget_by_context: bool = False

    @classmethod
    def of(cls, chosen: DecodingSettings) -> AttentionSettings:
        """Those that a user chose."""
        return cls(
            chosen.attn,
            SparseSettings(budget=chosen.budget or SparseSettings.budget, scorer=chosen.scorer),
            chosen.dense_layers,
            chosen.backend,
            budget_by_context=chosen.budget is None,
        )

    def asked(self, prefill_chunk: int | None = None) -> DecodingSettings:
        """What a decision is made from; prefill_chunk: tokens, None to go by the device."""
        return DecodingSettings(
            attn=cast(AttentionKind, self.kind),
            budget=None if self.budget_by_context else self.sparse.budget,
            dense_layers=self.dense_layers,
            backend=cast(BackendName, self.backend),
            prefill_chunk=prefill_chunk,
        )

    def resolve(
        self, decided: Attention, announce: Callable[[str], None] | None = None
    ) -> SparseDecoding | None:
        """How to decode sparsely as was decided, or None with full attention.

        announce: told before a backend compiles.
        """
        if decided.backend is None or decided.budget is None:
            return None
        return SparseDecoding(replace(self.sparse, budget=decided.budget), load(decided.backend, announce))


def decide_for(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    asked: DecodingSettings,
    context: int,
) -> Attention:
    """What is decided about a text model's config, with so many tokens, on a device. Raises UsageError where
    a named backend cannot run, and ModelUnavailableError where Adamas is asked for and does not serve the
    model.
    """
    unserved = unserved_reason(config)
    return decide_attention(
        asked,
        context,
        backends_of(device),
        obstacle=unserved,
        token_bytes=0 if unserved else token_bytes(config, dtype),
    )


def backends_of(device: torch.device) -> Backends:
    """What computes sparse steps on a device, and what cannot."""
    return Backends(device.type, {name: obstacle(name, device) for name in BACKENDS})


def unserved_reason(config: PreTrainedConfig) -> str | None:
    """Why this module's attention would be wrong for a text model's config, or None where it is right."""
    return attention_obstacle(lambda name: getattr(config, name, None))


@contextmanager
def adamas_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's layers attend through this module; restores what was there, whatever happens inside."""
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            registry._global_mapping.pop(NAME, None)


def attention_mask(
    *args: Any, local_size: int | None = None, use_vmap: bool = False, **kwargs: Any
) -> Tensor | None:
    """The mask of sliding-window layers, as SDPA takes it. Full layers need none: `attention_forward` is
    causal.

    Raises ModelUnavailableError where the model adds rules of its own to the causal mask.
    """
    if use_vmap:
        raise refusal("its attention mask is not plainly causal")
    return None if local_size is None else sdpa_mask(*args, local_size=local_size, **kwargs)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    adamas_cache: AdamasCache,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the form of transformers' AttentionInterface.

    query [B, H, N, D]; key and value as the cache's `update` returned them; returns [B, N, H, D].
    """
    for extra in SCORE_EXTRAS:
        if kwargs.get(extra) is not None:
            raise refusal(f"its attention uses {extra}")
    layer = adamas_cache.layers[module.layer_idx]
    if not isinstance(layer, FullLayer):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer.decodes_sparsely:
        out = layer.decode(query, key, value, scale)
    elif layer.steps_fully(query.shape[2]):
        out = layer.step_fully(query, key, value, scale)
    else:
        out = chunk_attention(query, key, value, scale)
        layer.observe(query)
        if adamas_cache.encodes:
            layer.encode()
    return out.transpose(1, 2), None
