"""Where the parts of a layer that several processes share begin and end."""

from __future__ import annotations

BORDERS = 256, 32, 1  # numbers in the blocks of formats: parts end at the largest that divides the whole


def borders(size: int, parts: int) -> list[int]:
    """Where parts of nearly the same size begin, and the end of the last. Raises ValueError if there are too
    few numbers.
    """
    block = next((block for block in BORDERS if size % block == 0 and size // block >= parts), None)
    if block is None:
        raise ValueError(f"{size} numbers have no {parts} parts")
    return [-(-(size // block) * part // parts) * block for part in range(parts + 1)]


def splits_head(vocabulary: int, parts: int, *, tied: bool) -> bool:
    """Whether each part of a model has as many rows of the matrix after the last layer; tied: it is the
    embeddings', of which every part needs all.
    """
    return not tied and vocabulary % parts == 0
