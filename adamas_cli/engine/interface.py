"""Adamas as an attention implementation of transformers: a model is told once, for its life, to attend so.

No forward is rewritten: every model that calls transformers' attention interface hands over q, k, v after
RoPE, with KV heads not repeated. What a pass is for lies beside it while it runs; a call of the model that is
no pass of a timeline attends as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode
from adamas_cli.planning.decision import refusal

NAME = "adamas"
# What some models pass to change the scores or the softmax; ignoring one would be silently wrong.
SCORE_EXTRAS = ("softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True)
class Pass:
    """One pass of new tokens through a model: which cache they go to, and how they attend."""

    cache: KVCache
    mode: Mode


_UNDER_WAY: ContextVar[Pass | None] = ContextVar("adamas_pass", default=None)


def install(model: PreTrainedModel) -> None:
    """Let a model's layers attend through this module from now on."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)
    model.set_attn_implementation(NAME)


@contextmanager
def under_way(one: Pass) -> Iterator[None]:
    """While one call of a model runs."""
    token = _UNDER_WAY.set(one)
    try:
        yield
    finally:
        _UNDER_WAY.reset(token)


def attention_mask(
    *args: Any, local_size: int | None = None, use_vmap: bool = False, **kwargs: Any
) -> Tensor | None:
    """The mask of sliding-window layers, as SDPA takes it. In a pass full layers need none: `FullLayer` is
    causal.

    Raises ModelUnavailableError where the model adds rules of its own to the causal mask.
    """
    if _UNDER_WAY.get() is None:
        return sdpa_mask(*args, local_size=local_size, use_vmap=use_vmap, **kwargs)
    if use_vmap:
        raise refusal("its attention mask is not plainly causal")
    return None if local_size is None else sdpa_mask(*args, local_size=local_size, **kwargs)


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the form of transformers' AttentionInterface.

    query [B, H, N, D]; key and value as the cache's `update` returned them; returns [B, N, H, D].
    """
    now = _UNDER_WAY.get()
    if now is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    for extra in SCORE_EXTRAS:
        if kwargs.get(extra) is not None:
            raise refusal(f"its attention uses {extra}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = now.cache.attending(module)
    out = layer.attend(module, query, key, value, attention_mask, scale, now.mode)
    return out.transpose(1, 2), None
