"""Which reader a file needs: by its first bytes, and by its name where those leave a choice."""

from __future__ import annotations

import os
import re
from enum import StrEnum

from adamas_cli.documents.decoding import unicode_by_start


class Format(StrEnum):
    """Formats that are converted to text."""

    PDF = "pdf"
    EPUB = "epub"
    DOCX = "docx"
    ODT = "odt"
    RTF = "rtf"
    HTML = "html"
    NOTEBOOK = "notebook"


# In an encoding; what only looks like one of these is read as the text it is.
TEXTUAL = frozenset([Format.HTML, Format.NOTEBOOK])

_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what Word wraps an encrypted document in
_MARK_BYTES = 8  # in which UTF-16 shows
_PDF_WITHIN = 1024  # bytes: where readers of PDF look for its mark
# EPUB and ODT begin with an uncompressed member of this name, which holds their type.
_MIMETYPE = re.compile(rb"mimetype(?:.{0,64}?)(application/[\w.+-]+)", re.DOTALL)
_MIMETYPES = {
    b"application/epub+zip": Format.EPUB,
    b"application/vnd.oasis.opendocument.text": Format.ODT,
}
_BY_SUFFIX = {".epub": Format.EPUB, ".docx": Format.DOCX, ".odt": Format.ODT}
_RTF = re.compile(rb"\{\\rtf[1\\]")
_PDF_OBJECT = re.compile(rb"\d \d+ obj\b")
# Names of source code and of text, which may begin with a page of HTML and is no page.
_SOURCE_SUFFIXES = frozenset(
    [
        *("asp", "aspx", "cfm", "c", "cc", "cpp", "cs", "css", "csv", "diff", "ejs", "erb", "go", "h"),
        *("haml", "hbs", "j2", "java", "jinja", "jinja2", "js", "jsp", "jsx", "kt", "less", "liquid"),
        *("log", "lua", "m", "md", "mdx", "mjs", "mustache", "njk", "patch", "php", "phtml", "pl", "po"),
        *("pot", "py", "rb", "rs", "rst", "scala", "scss", "sh", "sql", "svelte", "swift", "tmpl", "tpl"),
        *("ts", "tsx", "twig", "txt", "vue", "xml", "xsl", "xslt", "yaml", "yml"),
    ]
)
_WHOLE_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--(?:(?!-->).){0,2000}-->\s*)*<(?:!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
# Where the marks of templates are examples, or belong to another language.
_QUOTED = re.compile(
    rb"(<(script|style|pre|code|textarea|samp|kbd|tt|xmp)\b[^>]*>).*?(?:</\2\b|$)|<!--.*?(?:-->|$)",
    re.IGNORECASE | re.DOTALL,
)
_TEMPLATE = re.compile(rb"\{[{%]|\{# |<%|<\?(?!xml)|\$\{")
_NOTEBOOK_SUFFIXES = ("", ".ipynb", ".json")
_NOTEBOOK = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")


def recognized(head: bytes, path: str) -> Format | None:
    """The format of a file that begins with `head`; None for what is read as it is, or not at all.

    A page of HTML is converted if it is whole. Fragments and templates are source code, and stay it.
    """
    suffix = os.path.splitext(path)[1].lower()
    by_name = suffix == ".pdf" and b"%PDF-" in head[:_PDF_WITHIN]
    if by_name or (head.startswith(b"%PDF-") and not _is_about_pdf(head)):
        return Format.PDF
    if _RTF.match(head):
        return Format.RTF
    if head.startswith(_ZIP):
        mimetype = _MIMETYPE.match(head, 30)
        by_type = _MIMETYPES.get(mimetype[1].split(b"PK", 1)[0]) if mimetype else None
        return by_type or _BY_SUFFIX.get(suffix) or (Format.DOCX if b"word/" in head else None)
    if head.startswith(_OLE) and suffix == ".docx":
        return Format.DOCX
    if suffix == ".ipynb" or (suffix in _NOTEBOOK_SUFFIXES and _is_notebook(head)):
        return Format.NOTEBOOK
    if suffix[1:] not in _SOURCE_SUFFIXES and _is_page(head):
        return Format.HTML
    return None


def _is_about_pdf(head: bytes) -> bool:
    """Whether a text only begins with the mark of PDF: no object follows it, and every byte is printable."""
    printable = not head.translate(None, bytes({*range(0x20, 0x7F)} | set(b"\t\n\f\r")))
    return printable and not _PDF_OBJECT.search(head)


def _is_notebook(head: bytes) -> bool:
    if not _NOTEBOOK.match(head):
        return False
    return b'"cell_type"' in head or (b'"nbformat"' in head and (b'"cells"' in head or b'"metadata"' in head))


def _is_page(head: bytes) -> bool:
    if b"\0" in head[:_MARK_BYTES]:
        found = unicode_by_start(head)
        if found is not None:
            head = head[found.mark :].decode(found.codec, "ignore").encode()
    return _WHOLE_PAGE.match(head) is not None and not _TEMPLATE.search(_QUOTED.sub(rb"\1", head))
