"""Text in blocks that can be tokenized one by one, with the same tokens as the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

BLOCK = 1 << 16  # characters; 5 to 40 ms of tokenization, which Ctrl-C cannot interrupt
LONGEST_WORD = 1 << 17  # characters without a seam that are still tokenized as one

_NEAR = 1024  # characters; prose and code have a seam within these


def blocks(pieces: Iterable[str], seam: re.Pattern[str] | None) -> Iterator[str]:
    """The concatenated pieces, cut only at matches of `seam`, a few hundred KB at a time.

    Without a seam pattern, everything comes as one block. A stretch of more than LONGEST_WORD characters
    without a seam (one letter a million times) is cut as if the text ended there. Cuts depend only on the
    text, not on its pieces.
    """
    if seam is None:
        yield "".join(pieces)
        return
    rest = ""  # begins at a cut and holds no seam
    for chunk in _chunks(pieces):
        text = rest + chunk
        cut = _last_seam(seam, text, len(rest)) if len(chunk) == BLOCK else 0  # the end needs no cut
        if cut:
            yield text[:cut]
            rest = text[cut:]
        elif len(text) > LONGEST_WORD:
            yield text
            rest = ""
        else:
            rest = text
    if rest:
        yield rest


def _last_seam(seam: re.Pattern[str], text: str, start: int) -> int:
    """The last position of a seam at `start` or after it, 0 if there is none."""
    for begin in (max(start, len(text) - _NEAR), start):
        cut = 0
        for match in seam.finditer(text, begin):
            cut = match.start()
        if cut:
            return cut
    return 0


def _chunks(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in chunks of BLOCK characters, however it was cut before."""
    held: list[str] = []
    missing = BLOCK
    for piece in pieces:
        start = 0
        while len(piece) - start >= missing:
            held.append(piece[start : start + missing])
            yield "".join(held)
            start += missing
            held, missing = [], BLOCK
        if start < len(piece):
            held.append(piece[start:])
            missing -= len(piece) - start
    if held:
        yield "".join(held)
