"""How keys and values are kept, by the names users choose from."""

from __future__ import annotations

import torch

from adamas_cli.settings import CacheDType

Formats = tuple[torch.dtype, torch.dtype]  # of rows of keys and of values, see `adamas_kernels.packed`


def formats_of(kept: CacheDType, dtype: torch.dtype) -> Formats | None:
    """The formats for a cache of a model that computes in this number format; None to keep the model's own.

    `int4` still keeps keys in 8 bits: with fewer, some models' answers change (docs/accuracy.md).
    """
    if kept == "16":
        return (torch.float16, torch.float16) if dtype == torch.float32 else None
    return {"int8": (torch.int8, torch.int8), "int4": (torch.int8, torch.uint8)}.get(kept)
