"""What the parts of a stored cache are called: a layer's number and what it is of that layer, as `3.keys`."""

from __future__ import annotations

STREAMS = ("keys", "values")  # what the store keeps of every token of a layer that attends to all


def is_stream(name: str) -> bool:
    """Whether a name of `KVCache.stored` is of something that every token has, which `place` has a place for;
    the others are states at the last token.
    """
    return split_name(name)[1] in STREAMS


def split_name(name: str) -> tuple[int, str]:
    """The layer and the part that a name of `KVCache.stored` is of."""
    index, _, part = name.partition(".")
    return int(index), part
