"""OpenDocument texts, through the extra `office`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamas_cli.documents.formats.archive import open_archive
from adamas_cli.documents.formats.markup import headed
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part

_MANIFEST = "META-INF/manifest.xml"


def read(path: str) -> Iterator[Part]:
    """Headings and paragraphs as Markdown, with a section for each heading. Raises UnreadableError, and
    whatever zipfile, XML parsers and odfpy raise for damaged files.
    """
    try:
        from odf.opendocument import load
    except ImportError as error:
        raise UnreadableError(Trouble.NO_OFFICE) from error
    refuse_encrypted(path)
    yield from headed("\n\n".join(_paragraphs(load(path).text)))


def refuse_encrypted(path: str) -> None:
    """Raises UnreadableError if an archive is a bomb or encrypted."""
    with open_archive(path) as archive:
        if _MANIFEST in archive.namelist() and b"encryption-data" in archive.read(_MANIFEST):
            raise UnreadableError(Trouble.ENCRYPTED)


def _paragraphs(element: Any) -> Iterator[str]:
    from odf.namespaces import TEXTNS
    from odf.teletype import extractText

    for child in element.childNodes:
        name = getattr(child, "qname", None)
        if name == (TEXTNS, "h"):
            level = int(child.getAttribute("outlinelevel") or 1)
            yield "#" * min(max(level, 1), 6) + " " + extractText(child).strip()
        elif name == (TEXTNS, "p"):
            if text := extractText(child).strip():
                yield text
        elif child.hasChildNodes():
            yield from _paragraphs(child)
