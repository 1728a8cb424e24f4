"""What a stored block is called: a chain of hashes over all that its keys and values depend on.

The first link hashes the model and how it computes, every further one the link before and one block's token
ids. So two documents share the blocks of their common beginning, whatever their files are called, and a block
that has the right name has the right content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from adamas_cli.store.places import FORMAT

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

KEY_DIGITS = 40
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
) -> dict[str, Any]:
    """What the keys and values of a token depend on, besides the tokens up to it; none of it needs weights.

    config: the text model's. dtype, device: by torch's names, and kept: as `StoreSettings` says. turned: the
    length by which positions turn, where they do not do so alike at any.
    The tokenizer and the chat template only decide about the tokens, which are hashed themselves. The
    attention of decode steps is not among these: prefill is always exact.
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
    return facts if turned is None else facts | {"turned": turned}


def block_tokens(chunk: int, token_bytes: int) -> int:
    """Tokens of a block: a chunk of the prefill, or as many whole ones as make LEAST_BLOCK_BYTES.

    token_bytes: of one token's keys and values in all layers.
    """
    return chunk * math.ceil(LEAST_BLOCK_BYTES / (chunk * max(1, token_bytes)))


def first_link(facts: Mapping[str, Any]) -> bytes:
    """Where a model's chains begin."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()


def chain(facts: Mapping[str, Any], ids: np.ndarray, block: int) -> list[str]:
    """The keys of the blocks of tokens int [n], the last one of which may be shorter than `block`."""
    return chain_from(first_link(facts), ids, block)


def chain_from(link: bytes, ids: np.ndarray, block: int) -> list[str]:
    """The same behind a first link."""
    tokens = np.ascontiguousarray(ids, dtype="<i4")
    keys = []
    for start in range(0, len(tokens), block):
        link = hashlib.sha256(link + tokens[start : start + block].tobytes()).digest()
        keys.append(link.hex()[:KEY_DIGITS])
    return keys


def codes_key(last: str, coding: Mapping[str, Any]) -> str:
    """The key of the codes of a document whose last block has key `last`, made in this way."""
    return f"{last}-{hashlib.sha256(json.dumps(coding, sort_keys=True).encode()).hexdigest()[:8]}"
