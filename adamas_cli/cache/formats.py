"""How keys and values are kept, by the names that a user has for it."""

from __future__ import annotations

import torch

from adamas_cli.settings import CacheDType

Formats = tuple[torch.dtype, torch.dtype]  # of rows of keys and of values, see `adamas_kernels.packed`


def formats_of(kept: CacheDType, dtype: torch.dtype) -> Formats | None:
    """Of the cache of a model that computes in this number format; None where they are kept as they come.

    With `int4` keys have 8 bits all the same: with fewer, some models answer something else
    (docs/accuracy.md).
    """
    if kept == "16":
        return (torch.float16, torch.float16) if dtype == torch.float32 else None
    return {"int8": (torch.int8, torch.int8), "int4": (torch.int8, torch.uint8)}.get(kept)
