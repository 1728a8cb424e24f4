"""What the keys and values of a stored block depend on, as hashed into its name.

The first link of a chain hashes the model and how it computes; each further link hashes the previous one and
one block's token ids (`chain.py`). So two documents share the blocks of their common beginning, whatever
their file names, and a block with the right name has the right content.
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
# Config fields about the model's origin or how it is run, not about what it computes.
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
    in_bytes: bool = False,
    part: str | None = None,
) -> dict[str, Any]:
    """What a token's keys and values depend on, besides the tokens up to it; none of it needs weights.

    config: the text model's. dtype, device: by torch's names; kept: by `StoreSettings`. turned: the length
    that sets how positions rotate, None if length does not matter. cached: how the cache keeps keys and
    values, see `DecodingSettings.cache_dtype`; in_bytes: see `LoadedModel`; part: which rank's, None for a
    whole model. The tokenizer and the chat template only determine the tokens, which are hashed themselves;
    each block says how its tokens were read. The attention of decode steps does not matter.
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
    told: dict[str, Any] = {"turned": turned, "cached": None if cached == "auto" else cached}
    told |= {"in_bytes": in_bytes or None, "part": part}
    return facts | {name: fact for name, fact in told.items() if fact is not None}


def block_tokens(chunk: int, token_bytes: int) -> int:
    """Tokens of a block: one prefill chunk, or as many whole chunks as make LEAST_BLOCK_BYTES.

    token_bytes: of one token's keys and values in all layers.
    """
    return chunk * math.ceil(LEAST_BLOCK_BYTES / (chunk * max(1, token_bytes)))


def first_link(facts: Mapping[str, Any]) -> bytes:
    """The start of a model's chains, see `chain.Chain`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()


def sparse_mark(facts: Mapping[str, Any]) -> bytes:
    """What a sparsely read block adds to its link, for reading with these facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def codes_key(last: str, coding: Mapping[str, Any]) -> str:
    """The key of a document's codes made with `coding`; last: the key of its last block."""
    return f"{last}-{hashlib.sha256(json.dumps(coding, sort_keys=True).encode()).hexdigest()[:8]}"
