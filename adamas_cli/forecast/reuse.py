"""The tokens of a prompt that are kept on disk, found by the keys of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli import __version__
from adamas_cli.memo import Memo
from adamas_cli.models.configs import read_config
from adamas_cli.settings import CacheDType
from adamas_cli.store.blocks import has_states
from adamas_cli.store.chain import Chain
from adamas_cli.store.entries import entries
from adamas_cli.store.keys import block_tokens, first_link, model_facts, sparse_mark
from adamas_cli.store.places import FORMAT, block_file, documents_directory
from adamas_cli.store.settings import stored_format

if TYPE_CHECKING:
    from adamas_cli.models import ModelFiles

_LINKS = Memo("keys.json")


def kept_tokens(
    files: ModelFiles,
    prompts: Sequence[np.ndarray],
    *,
    device: str,
    dtype: str,
    quantization: str,
    chunk: int,
    kept: str,
    trust_remote_code: bool,
    turned: int | None,
    sparsely: Sequence[bool],
    cached: CacheDType = "auto",
    in_bytes: bool = False,
    gpus: int = 1,
) -> list[int]:
    """The number of tokens of each prompt, int [n], that a model loaded with these settings need not read
    again. turned, in_bytes: see `model_facts`. sparsely: whether a prompt's sparsely read tokens can be
    reused too. gpus: over how many the model is split.

    The start of their keys depends on the config as transformers reads it, whose import takes seconds. It is
    therefore remembered, and computed only if anything was kept in this way at all.
    """
    root = documents_directory()
    stored_dtype = stored_format(kept, cached, dtype)
    if not any(entry.device == device and entry.dtype == stored_dtype for entry in entries(root)):
        return [0] * len(prompts)
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
            __version__,
            str(turned),
            cached,
            str(in_bytes),
            *([f"{gpus} GPUs"] if gpus > 1 else []),
        ]
    )
    known = _LINKS.get(way)
    if known is None:
        link, block, mark = _beginning(
            files,
            device,
            dtype,
            quantization,
            chunk=chunk,
            kept=kept,
            trust_remote_code=trust_remote_code,
            turned=turned,
            cached=cached,
            in_bytes=in_bytes,
            gpus=gpus,
        )
        _LINKS.put(way, {"link": link.hex(), "block": block, "mark": mark.hex()})
    else:
        link, block, mark = bytes.fromhex(known["link"]), known["block"], bytes.fromhex(known["mark"])
    chains = [
        Chain(link, ids, block, mark if reads else None) for ids, reads in zip(prompts, sparsely, strict=True)
    ]
    return [
        min(len(ids), block * _whole_blocks(root, chain)) for ids, chain in zip(prompts, chains, strict=True)
    ]


def _whole_blocks(root: Path, chain: Chain) -> int:
    """The number of leading blocks of a document after which reading can continue."""
    found = chain.longest(lambda key: block_file(root, key).is_file())
    there = chain.keys(found.dense)[: found.blocks]
    while there and not has_states(block_file(root, there[-1])):
        there.pop()
    return len(there)


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
    cached: CacheDType,
    in_bytes: bool,
    gpus: int,
) -> tuple[bytes, int, bytes]:
    """The first link of the keys, the tokens per block, and the mark of sparsely read ones."""
    import torch
    from adamas_kernels.reading import ReadSettings

    from adamas_cli.cache.mode import reading_facts
    from adamas_cli.models.shape import shape_of_config
    from adamas_cli.models.split import share_of
    from adamas_cli.ranks.mirror import part_name

    number: torch.dtype = getattr(torch, dtype)
    whole = read_config(files.directory, trust_remote_code=trust_remote_code, dtype=number)
    if gpus > 1:  # all shares are kept alike
        whole = share_of(whole, 0, gpus)
    config = whole.get_text_config()
    block = block_tokens(chunk, shape_of_config(config).cache_bytes(1, number.itemsize, cached))
    facts = model_facts(
        config,
        fingerprint=files.fingerprint,
        quantization=quantization,
        dtype=dtype,
        device=device,
        block=block,
        kept=kept,
        turned=turned,
        cached=cached,
        in_bytes=in_bytes,
        part=part_name(0, gpus) if gpus > 1 else None,
    )
    return first_link(facts), block, sparse_mark(reading_facts(ReadSettings()))
