"""Web pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adamas_cli.documents.decoding import characters
from adamas_cli.documents.encodings import Encoding
from adamas_cli.documents.formats.markup import headed, written
from adamas_cli.documents.formats.pages import Page
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAX_BYTES = 32 * 2**20  # a page is parsed as a whole


def read(path: str, encoding: str | None = None) -> Iterator[Part | Remark]:
    """Title and description, then Markdown with a section for each heading. encoding: the codec.

    Raises UnreadableError, and RecursionError for very deep nesting.
    """
    file = Path(path)
    if file.stat().st_size > MAX_BYTES:
        raise UnreadableError(Trouble.TOO_LARGE)
    known = Encoding(encoding) if encoding else None
    page = Page("".join(characters([file.read_bytes()], known)).removeprefix("\ufeff"))
    text = written(page)
    if not text:
        raise UnreadableError(Trouble.NO_TEXT)
    head = []
    if page.title and f"# {page.title}\n" not in f"{text}\n":
        head.append(f"title: {page.title}\n")
    if page.description and page.description not in text:
        head.append(f"description: {page.description}\n")
    yield from headed("".join(head) + "\n" * bool(head) + text)
    for kind, count in (+page.left_out).items():
        yield Remark(kind, count)
