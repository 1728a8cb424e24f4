"""Line numbers before a document's lines, so that an answer can cite them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adamas_cli.documents.parts import Part


def numbered(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts with `12| ` before the twelfth line and so on; parts may be cut anywhere."""
    line = 0
    at_line_start = True
    for text, section in parts:
        written = []
        for piece in _lines(text):
            if at_line_start:
                line += 1
                written.append(f"{line}| ")
            written.append(piece)
            at_line_start = piece.endswith("\n")
        yield Part("".join(written), section)


def _lines(text: str) -> Iterator[str]:
    """Pieces up to and including each `\n`; `splitlines` would also split at form feeds and others."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end
