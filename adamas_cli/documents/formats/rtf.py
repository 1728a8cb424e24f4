"""Rich Text Format, through the extra `office`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part

MAX_BYTES = 32 * 2**20  # parsed as a whole; pictures are hexadecimal digits in it


def read(path: str) -> Iterator[Part]:
    """The plain text, without sections. Raises UnreadableError."""
    try:
        from striprtf.striprtf import rtf_to_text
    except ImportError as error:
        raise UnreadableError(Trouble.NO_OFFICE) from error
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    yield Part(rtf_to_text(file.read_bytes().decode("latin-1"), errors="replace").strip() + "\n")
