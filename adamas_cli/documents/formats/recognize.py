"""Which reader a file needs: by its first bytes, and by its name where those leave a choice."""

from __future__ import annotations

import os
import re
from enum import StrEnum


class Format(StrEnum):
    """Formats that are converted to text."""

    PDF = "pdf"
    EPUB = "epub"
    DOCX = "docx"
    ODT = "odt"
    RTF = "rtf"
    HTML = "html"


_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what Word wraps an encrypted document in
_PDF_WITHIN = 1024  # bytes: where readers of PDF look for its mark
# EPUB and ODT begin with an uncompressed member of this name, which holds their type.
_MIMETYPE = re.compile(rb"mimetype(?:.{0,64}?)(application/[\w.+-]+)", re.DOTALL)
_MIMETYPES = {
    b"application/epub+zip": Format.EPUB,
    b"application/vnd.oasis.opendocument.text": Format.ODT,
}
_BY_SUFFIX = {".epub": Format.EPUB, ".docx": Format.DOCX, ".odt": Format.ODT}
_PAGE_SUFFIXES = (".html", ".htm", ".xhtml")
_WHOLE_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--(?:(?!-->).){0,2000}-->\s*)*<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
_TEMPLATE = re.compile(rb"\{[{%#]|<[%?](?!xml)|\$\{")


def recognized(head: bytes, path: str) -> Format | None:
    """The format of a file that begins with `head`; None for what is read as it is, or not at all.

    A page of HTML is converted if it is whole. Fragments and templates are source code, and stay it.
    """
    suffix = os.path.splitext(path)[1].lower()
    if head.startswith(b"%PDF-") or (suffix == ".pdf" and b"%PDF-" in head[:_PDF_WITHIN]):
        return Format.PDF
    if head.startswith(rb"{\rtf"):
        return Format.RTF
    if head.startswith(_ZIP):
        mimetype = _MIMETYPE.match(head, 30)
        by_type = _MIMETYPES.get(mimetype[1].split(b"PK", 1)[0]) if mimetype else None
        return by_type or _BY_SUFFIX.get(suffix) or (Format.DOCX if b"word/" in head else None)
    if head.startswith(_OLE) and suffix == ".docx":
        return Format.DOCX
    if suffix in _PAGE_SUFFIXES and _WHOLE_PAGE.match(head) and not _TEMPLATE.search(head):
        return Format.HTML
    return None
