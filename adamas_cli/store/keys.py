"""What the keys and values of a stored block depend on, and how that becomes a part of its name.

The first link of a chain hashes the model and how it computes, every further one the link before and one
block's token ids (`chain.py`). So two documents share the blocks of their common beginning, whatever their
files are called, and a block that has the right name has the right content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adamas_cli.store.places import FORMAT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LEAST_BLOCK_BYTES = 1 << 20
# What a config says about where it came from or how it is run, and not about what the model computes.
_ASIDE = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation", "use_cache")


def model_facts(
    config: PreTrainedConfig,
    *,
    fingerprint: str,
    quantization: str,
    dtype: str,
    device: str,
    block: int,
    kept: str,
    turned: int | None = None,
    cached: str = "auto",
) -> dict[str, Any]:
    """What the keys and values of a token depend on, besides the tokens up to it; none of it needs weights.

    config: the text model's. dtype, device: by torch's names, and kept: as `StoreSettings` says. turned: the
    length by which positions turn, where they do not do so alike at any. cached: how the cache has keys and
    values, see `DecodingSettings.cache_dtype`.
    The tokenizer and the chat template only decide about the tokens, which are hashed themselves, and how
    these were read is told by each block. The attention of decode steps is not among these.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in _ASIDE}
    facts = {
        "format": FORMAT,
        "weights": fingerprint,
        "quantization": quantization,
        "dtype": dtype,
        "device": device,
        "config": fields,
        "block": block,
        "kept": kept,
    }
    told = {"turned": turned, "cached": None if cached == "auto" else cached}
    return facts | {name: fact for name, fact in told.items() if fact is not None}


def block_tokens(chunk: int, token_bytes: int) -> int:
    """Tokens of a block: a chunk of the prefill, or as many whole ones as make LEAST_BLOCK_BYTES.

    token_bytes: of one token's keys and values in all layers.
    """
    return chunk * math.ceil(LEAST_BLOCK_BYTES / (chunk * max(1, token_bytes)))


def first_link(facts: Mapping[str, Any]) -> bytes:
    """Where the chains of a model begin, see `chain.Chain`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()


def sparse_mark(facts: Mapping[str, Any]) -> bytes:
    """What a block adds to its link that is read sparsely, in the way that these facts tell."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def codes_key(last: str, coding: Mapping[str, Any]) -> str:
    """The key of the codes of a document whose last block has key `last`, made in this way."""
    return f"{last}-{hashlib.sha256(json.dumps(coding, sort_keys=True).encode()).hexdigest()[:8]}"
