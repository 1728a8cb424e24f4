"""The tensors of a block by name: per-token parts, compressed or not, and states at the last token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adamas_cli.cache.names import is_stream

SCALE = "_scale"  # suffix to the name of the scaled tensor


def compressed_names(names: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """The compressed tensors of a block, each with the names of its two parts."""
    known = set(names)
    return {name: (name, name + SCALE) for name in known if name + SCALE in known}


def state_names(names: Iterable[str]) -> list[str]:
    """The tensors of a block that are states at its last token. A document can be resumed only after a block
    that has some.
    """
    known = list(names)
    parts = {part for both in compressed_names(known).values() for part in both}
    return [name for name in known if name not in parts and not is_stream(name)]


def keeps_states(index: int, states: int, streams: int) -> bool:
    """Whether the states at the end of a block are stored with it. The last block of a document always has
    them. States as large as many blocks are stored only after as many blocks, so that they take no more than
    the rest. index: of the block in its document; states, streams: bytes of its states, and of its tokens'
    parts.

    The number of blocks between two states is a power of two. So states that grow with the tokens, as windows
    do until they are full, still take no more than the rest.
    """
    apart = max(1, -(-states // max(1, streams)))
    return (index + 1) % (1 << (apart - 1).bit_length()) == 0
