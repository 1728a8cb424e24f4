"""The keys of a document's blocks: a chain of hashes over the tokens and over how they were read.

A document may be read densely up to a point and sparsely after it. A block's key covers itself and all blocks
before it, so a lookup for a dense block never finds a sparse one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

KEY_DIGITS = 40
DENSELY = b""


class Beginning(NamedTuple):
    """The first blocks of a document, this many; the first `dense` were read densely, the others sparsely."""

    blocks: int
    dense: int


class Chain:
    """The blocks of tokens, int [n], each of `block` tokens except the last.

    link: the first one, see `keys.first_link`. sparsely: what a sparsely read block adds to its link, see
    `keys.sparse_mark`; None if nothing is read sparsely.
    """

    def __init__(self, link: bytes, ids: np.ndarray, block: int, sparsely: bytes | None = None) -> None:
        tokens = np.ascontiguousarray(ids, dtype="<i4")
        self._blocks = [tokens[start : start + block].tobytes() for start in range(0, len(tokens), block)]
        self._sparsely = sparsely
        self._dense = [link, *_links(link, DENSELY, self._blocks)]

    def __len__(self) -> int:
        return len(self._blocks)

    def keys(self, dense: int | None = None) -> list[str]:
        """The keys of all blocks, the first `dense` of which are read densely; None for all."""
        start = len(self._blocks) if dense is None else dense
        return [*map(_key, self._dense[1 : start + 1]), *self._sparse_keys(start)]

    def longest(self, is_there: Callable[[str], bool]) -> Beginning:
        """The longest beginning whose blocks all exist; among equals, the one with the most dense blocks."""
        dense = _leading(is_there, map(_key, self._dense[1:]))
        starts = [] if self._sparsely is None else range(dense, -1, -1)
        mixed = (Beginning(start + _leading(is_there, self._sparse_keys(start)), start) for start in starts)
        return max([Beginning(dense, dense), *mixed], key=lambda found: found.blocks)

    def _sparse_keys(self, start: int) -> Iterator[str]:
        """The keys of the blocks from `start` on, read sparsely after dense ones."""
        if self._sparsely is not None:
            yield from map(_key, _links(self._dense[start], self._sparsely, self._blocks[start:]))


def _links(link: bytes, mark: bytes, blocks: Sequence[bytes]) -> Iterator[bytes]:
    """The links after `link`, for blocks with this mark."""
    for tokens in blocks:
        link = hashlib.sha256(link + mark + tokens).digest()
        yield link


def _key(link: bytes) -> str:
    return link.hex()[:KEY_DIGITS]


def _leading(is_there: Callable[[str], bool], keys: Iterable[str]) -> int:
    """How many of the leading keys exist."""
    return sum(1 for _ in takewhile(is_there, keys))
