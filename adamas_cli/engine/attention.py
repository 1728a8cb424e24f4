"""Adamas as an attention implementation of transformers, registered for a scope and undone afterwards.

No forward is rewritten: every model that calls transformers' attention interface hands over q, k, v after
RoPE, with KV heads not repeated. The cache travels with the call as the keyword argument `adamas_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from adamas_kernels.contract import Facts, SparseSettings
from adamas_kernels.dispatch import BackendError, load, pick, serving
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adamas_cli.engine.cache import AdamasCache
from adamas_cli.engine.choice import DENSE_LAYERS, auto_min_context, budget_for
from adamas_cli.engine.layers import FULL, SLIDING, FullLayer, SparseDecoding, layer_types
from adamas_cli.errors import ModelUnavailableError, UsageError

NAME = "adamas"
# What some models pass to change the scores or the softmax; ignoring one would be silently wrong.
SCORE_EXTRAS = ("softcap", "s_aux", "position_bias", "head_mask")


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
    ) -> tuple[SparseDecoding | None, str | None]:
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
            raise UsageError(f"{error}. Use --backend auto.") from None
        sparse = replace(self.sparse, budget=budget_for(context)) if self.budget_by_context else self.sparse
        if self.kind == "auto" and context < auto_min_context(name, sparse.budget, token_bytes):
            return None, None
        return SparseDecoding(sparse, load(name, announce)), reason


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
    return ModelUnavailableError(f"Adamas attention does not serve this model: {reason}. Use --attn full.")


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
        out, _ = serving("prefill", Facts.of(query, key, value)).prefill(query, key, value, scale)
        layer.observe(query)
        if adamas_cache.encodes:
            layer.encode()
    return out.transpose(1, 2), None
