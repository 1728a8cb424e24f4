"""How much of a prompt is kept on disk, found by the keys of its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.forecast.memo import Memo
from adamas_cli.models.configs import read_config
from adamas_cli.store.blocks import has_states
from adamas_cli.store.entries import entries
from adamas_cli.store.keys import block_tokens, chain_from, first_link, model_facts
from adamas_cli.store.places import FORMAT, block_file, documents_directory

if TYPE_CHECKING:
    from adamas_cli.models import ModelFiles

_LINKS = Memo("keys.json")


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
    turned: int | None,
) -> int:
    """How many of the tokens, int [n], a model that is loaded so need not read again. turned: see
    `model_facts`.

    What their keys begin with depends on the config as transformers reads it, whose import takes seconds: it
    is remembered, and asked for only where something was kept in this way at all.
    """
    root = documents_directory()
    stored_dtype = dtype if kept == "auto" else kept
    if not any(entry.device == device and entry.dtype == stored_dtype for entry in entries(root)):
        return 0
    way = " ".join(
        [
            files.fingerprint,
            quantization,
            dtype,
            device,
            str(chunk),
            kept,
            version("transformers"),
            str(FORMAT),
            str(turned),
        ]
    )
    known = _LINKS.get(way)
    if known is None:
        link, block = _beginning(
            files,
            device,
            dtype,
            quantization,
            chunk=chunk,
            kept=kept,
            trust_remote_code=trust_remote_code,
            turned=turned,
        )
        _LINKS.put(way, {"link": link.hex(), "block": block})
    else:
        link, block = bytes.fromhex(known["link"]), known["block"]
    there = list(takewhile(lambda file: file.is_file(), _files(root, chain_from(link, ids, block))))
    while there and not has_states(there[-1]):
        there.pop()
    return min(len(ids), len(there) * block)


def _files(root: Path, keys: Sequence[str]) -> Iterator[Path]:
    return (block_file(root, key) for key in keys)


def _beginning(
    files: ModelFiles,
    device: str,
    dtype: str,
    quantization: str,
    *,
    chunk: int,
    kept: str,
    trust_remote_code: bool,
    turned: int | None,
) -> tuple[bytes, int]:
    """The first link of the keys, and the tokens of a block."""
    import torch

    from adamas_cli.models.shape import shape_of_config

    number: torch.dtype = getattr(torch, dtype)
    whole = read_config(files.directory, trust_remote_code=trust_remote_code, dtype=number)
    config = whole.get_text_config()
    block = block_tokens(chunk, shape_of_config(config).cache_bytes(1, number.itemsize))
    facts = model_facts(
        config,
        fingerprint=files.fingerprint,
        quantization=quantization,
        dtype=dtype,
        device=device,
        block=block,
        kept=kept,
        turned=turned,
    )
    return first_link(facts), block
