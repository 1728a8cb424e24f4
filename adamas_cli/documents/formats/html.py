"""Web pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adamas_cli.documents.formats.markup import headed, markdown
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part

MAX_BYTES = 32 * 2**20  # a page is parsed as a whole


def read(path: str, encoding: str | None) -> Iterator[Part]:
    """Markdown, with a section for each heading; encoding: the codec. Raises UnreadableError."""
    page = Path(path)
    if page.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    yield from headed(markdown(page.read_bytes()))
