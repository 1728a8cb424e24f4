"""Names of the parts of a stored cache: the layer's index and the part, as in `3.keys`."""

from __future__ import annotations

STREAMS = ("keys", "values")  # stored for every token of a full-attention layer


def is_stream(name: str) -> bool:
    """Whether a name of `KVCache.stored` is a per-token part, which has a `place`; the others are states at
    the last token.
    """
    return split_name(name)[1] in STREAMS


def split_name(name: str) -> tuple[int, str]:
    """The layer and the part in a name of `KVCache.stored`."""
    index, _, part = name.partition(".")
    return int(index), part
