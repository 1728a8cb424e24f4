"""Detects documents that hold only white space."""

from __future__ import annotations

import re

from adamas_cli.documents.document import Document

# Bytes that a blank file can begin with in any encoding: white space, zero bytes, byte order marks.
_MAYBE = re.compile(rb"[\s\0\x80-\xaf\xbb\xbf\xc2\xe1-\xe3\xef\xfe\xff]*")
_TEXT = re.compile("[^\\s\0\u200b-\u200f\u2060\ufeff]")


def is_blank(document: Document, head: bytes) -> bool:
    """Whether a document whose bytes begin with `head` has nothing to read. Raises AdamasError."""
    if _MAYBE.fullmatch(head) is None:
        return False
    return not any(map(_TEXT.search, document.pieces()))
