"""What a reader leaves out of a document, so that it can be said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Omission:
    """`count` things of a kind that are not in the text, such as "running heads and page numbers"."""

    count: int
    kind: str
