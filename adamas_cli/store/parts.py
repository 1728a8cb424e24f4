"""The tensors of a block by their names: parts of every token, compressed or not, and states at the last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adamas_cli.cache.names import is_stream

SCALE = "_scale"  # after the name of the tensor that is scaled


def compressed_names(names: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """The tensors of a block that are compressed, each with the names of its two parts."""
    known = set(names)
    return {name: (name, name + SCALE) for name in known if name + SCALE in known}


def state_names(names: Iterable[str]) -> list[str]:
    """The tensors of a block that are states at its last token. A document is taken up only after a block
    that has some.
    """
    known = list(names)
    parts = {part for both in compressed_names(known).values() for part in both}
    return [name for name in known if name not in parts and not is_stream(name)]


def keeps_states(index: int, states: int, streams: int) -> bool:
    """Whether the states at the end of a block are kept with it, the last block of a document aside, which
    always has them: where they are as large as many blocks, only after as many, so that they take no more
    than the rest. index: of the block in its document; bytes of its states, and of its tokens' parts.

    The number of blocks between two states is a power of two, so where states grow with the tokens, as
    windows do until they are full, they still take no more than the rest.
    """
    apart = max(1, -(-states // max(1, streams)))
    return (index + 1) % (1 << (apart - 1).bit_length()) == 0
