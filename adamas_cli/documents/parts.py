"""The parts of a document's text, whatever its format."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A piece of a document's text, at most 1 MiB."""

    text: str
    section: str | None = None
    """The section that begins with this text, such as "page 12"; None where the one before goes on."""
