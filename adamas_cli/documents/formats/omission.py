"""What a reader leaves out of a document, or has done to it, so that it can be said."""

from __future__ import annotations

from typing import NamedTuple


class Omission(NamedTuple):
    """`count` things of a kind that are not in the text, such as "running heads and page numbers"."""

    count: int
    kind: str
