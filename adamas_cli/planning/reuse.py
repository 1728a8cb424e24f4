"""How much of a prompt is kept on disk, found by the keys of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.store.entries import entries
from adamas_cli.store.places import block_file, documents_directory

if TYPE_CHECKING:
    from adamas_cli.models import ModelFiles


def kept_tokens(
    files: ModelFiles,
    ids: np.ndarray,
    *,
    device: str,
    dtype: str,
    quantization: str,
    chunk: int,
    kept: str,
    trust_remote_code: bool,
) -> int:
    """How many of the tokens, int [n], a model that is loaded so need not read again.

    Imports transformers, which takes a second or more, only where something was kept in this way at all.
    """
    root = documents_directory()
    stored_dtype = dtype if kept == "auto" else kept
    if not any(entry.device == device and entry.dtype == stored_dtype for entry in entries(root)):
        return 0
    import torch
    from transformers import AutoConfig

    from adamas_cli.engine.heads import token_bytes
    from adamas_cli.store.keys import block_tokens, chain, model_facts

    number: torch.dtype = getattr(torch, dtype)
    whole = AutoConfig.from_pretrained(
        files.directory, local_files_only=True, trust_remote_code=trust_remote_code, dtype=number
    )
    config = whole.get_text_config()
    block = block_tokens(chunk, token_bytes(config, number) * config.num_hidden_layers)
    facts = model_facts(
        config,
        fingerprint=files.fingerprint,
        quantization=quantization,
        dtype=dtype,
        device=device,
        block=block,
        kept=kept,
    )
    whole_blocks = 0
    for key in chain(facts, ids, block):
        if not block_file(root, key).is_file():
            break
        whole_blocks += 1
    return min(len(ids), whole_blocks * block)
