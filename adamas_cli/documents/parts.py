"""What a document's text comes in, whatever its format."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A piece of a document's text, at most 1 MiB of it."""

    text: str
    section: str | None = None
    """The section that begins with this text, such as "page 12"; None where the one before goes on."""


class LeftOut(NamedTuple):
    """What a reader does not turn into text, such as 3 "pictures"; it may come anywhere among the parts."""

    kind: str
    number: int = 1


class ByOcr(NamedTuple):
    """How many pages of a document were read by OCR, and in how many seconds; or what it will take, judged by
    the one page that was `sampled`.
    """

    pages: int
    seconds: float
    sampled: bool = False
