"""How a model's config divides attention into heads, and what one token takes of a layer's cache."""

from __future__ import annotations

from typing import Any

import torch
from adamas_kernels.reference import CODES_PER_WORD, padded_dim

from adamas_cli.models.recurrent import HYBRID, RECURRENT, state_size
from adamas_cli.models.shape import ATTENTION, layer_kinds

WORD_BYTES, SCALE_BYTES = 4, 2  # of a word of codes, and of a key's scale


def head_dim(config: Any) -> int:
    """Numbers in a head of a text model's config."""
    found: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return found


def kv_heads(config: Any) -> int:
    """Heads of keys and values."""
    found: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return found


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in one layer."""
    return (latent_dim(config) or 2 * kv_heads(config) * head_dim(config)) * dtype.itemsize


def latent_dim(config: Any) -> int:
    """Numbers that latent attention keeps of a token in one layer; 0 where heads are kept."""
    rank: int = getattr(config, "kv_lora_rank", None) or 0
    return rank and rank + int(config.qk_rope_head_dim)


def stored_token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers that have any."""
    kinds = layer_kinds(lambda name: getattr(config, name, None), config.num_hidden_layers)
    return token_bytes(config, dtype) * sum(kind in ATTENTION for kind in kinds)


def state_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the recurrent states of all layers at one token."""

    def get(name: str) -> Any:
        return getattr(config, name, None)

    kinds = layer_kinds(get, config.num_hidden_layers)
    return state_size(get).bytes(dtype.itemsize) * sum(kind in (*RECURRENT, HYBRID) for kind in kinds)


def code_bytes(config: Any) -> int:
    """Bytes of the codes and scales of one token's keys in one layer."""
    latent = latent_dim(config)
    heads, dim = (1, latent) if latent else (kv_heads(config), head_dim(config))
    return heads * (padded_dim(dim) // CODES_PER_WORD * WORD_BYTES + SCALE_BYTES)
