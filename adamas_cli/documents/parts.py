"""What a document's text comes in, whatever its format."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A piece of a document's text, at most 1 MiB of it."""

    text: str
    section: str | None = None
    """The section that begins with this text, such as "page 12"; None where the one before goes on."""


class Note(NamedTuple):
    """What a reader has to say about a whole document, or with `left_out` how many of what it left out."""

    note: str
    left_out: int = 0
