"""Adamas as an attention implementation of transformers, installed in a model once, for its life.

No forward is changed: every model that calls transformers' attention interface passes q, k, v after RoPE,
with KV heads not repeated, and so do the models of `models/llama_like.py`. A context variable holds the
current pass while it runs. A call of the model outside a timeline's pass attends as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from adamas_kernels.softmax import PLAIN, Softmax
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode
from adamas_cli.models.llama_like import Attention, LlamaLike, attend_causally
from adamas_cli.models.quiet import quiet_transformers
from adamas_cli.planning.decision import UnservedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "adamas"
# Arguments of some models that change scores and that no kernel knows; ignoring one would give wrong results
# silently.
SCORE_EXTRAS = ("position_bias", "head_mask")
_OWN_MASK = "its attention mask is not plainly causal"


@dataclass(frozen=True)
class Pass:
    """One pass of new tokens through a model: their cache, and how they attend."""

    cache: KVCache
    mode: Mode


_UNDER_WAY: ContextVar[Pass | None] = ContextVar("adamas_pass", default=None)


def install(model: PreTrainedModel) -> str:
    """Let a model's layers attend through this module from now on. Returns the previous implementation's
    name; models of our own have none.
    """
    if isinstance(model, LlamaLike):
        model.attend_by(attention_forward)
        return ""
    register()
    before: str = model.config._attn_implementation
    with quiet_transformers():  # it warns about vision parts that were left out of a model
        model.set_attn_implementation(NAME)
    return before


def register() -> None:
    """Tell transformers the name, so that a model can be loaded with it."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, attention_mask)


def now() -> Pass | None:
    """The current pass; None in a call outside one."""
    return _UNDER_WAY.get()


@contextmanager
def under_way(one: Pass) -> Iterator[None]:
    """A scope in which one call of a model runs."""
    begin(one)
    try:
        yield
    finally:
        end()


def begin(one: Pass) -> None:
    """From now on, a call of a model is this pass; passes are not nested."""
    _UNDER_WAY.set(one)


def end() -> None:
    """The pass has ended."""
    _UNDER_WAY.set(None)


def attention_mask(
    *args: Any, local_size: int | None = None, use_vmap: bool = False, **kwargs: Any
) -> Tensor | None:
    """The mask, as SDPA takes it. In a pass there is none: layers are causal and know their windows.

    Raises UnservedError if the model adds its own rules to the causal mask.
    """
    one = now()
    if one is None:
        from transformers.masking_utils import sdpa_mask

        return sdpa_mask(*args, local_size=local_size, use_vmap=use_vmap, **kwargs)
    if use_vmap:
        raise UnservedError(_OWN_MASK)
    return None


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, in the form of transformers' AttentionInterface.

    query [B, H, N, D]; key and value as returned by the cache's `update`; softcap: of scores; s_aux: learned
    sinks, [H]; returns [B, N, H, D]. Raises UnservedError if the model changes scores in another way or adds
    its own mask.
    """
    one = now()
    softmax = Softmax(softcap=softcap or 0.0, sinks=s_aux) if softcap or s_aux is not None else PLAIN
    if one is None and isinstance(module, Attention):
        return attend_causally(module, query, key, value, None, scaling=module.scaling)
    if one is None and softmax is PLAIN:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if one is None:
        return _by_definition(query, key, value, attention_mask, scale, softmax).transpose(1, 2), None
    for extra in SCORE_EXTRAS:
        if kwargs.get(extra) is not None:
            raise UnservedError(f"its attention uses {extra}")
    if attention_mask is not None:
        raise UnservedError(_OWN_MASK)
    layer = one.cache.attending(module)
    out = layer.attend(module, query, key, value, scale, softmax, one.mode)
    return out.transpose(1, 2).contiguous(), None


def _by_definition(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, softmax: Softmax
) -> Tensor:
    """Attention outside a pass, [B, H, N, D], for softmaxes that SDPA does not know. mask: bool, or None for
    a causal one.
    """
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, 1) for x in (keys, values))
    scores = softmax.capped((queries @ keys.transpose(-1, -2)).float() * scaling)
    if mask is None:
        new, size = scores.shape[-2:]
        mask = torch.ones(new, size, dtype=torch.bool, device=scores.device).tril(size - new)
    scores = scores.masked_fill(~mask, -torch.inf)
    out = scores.softmax(-1).to(values.dtype) @ values
    return softmax.with_sinks(out, scores.logsumexp(-1))[0]
