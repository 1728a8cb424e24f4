"""The reader that a file needs: by its first bytes, and by its name if those are ambiguous."""

from __future__ import annotations

import os
import re
from enum import StrEnum

from adamas_cli.documents.decoding import unicode_by_start
from adamas_cli.documents.formats import signs


class Format(StrEnum):
    """Formats that are converted to text."""

    PDF = "pdf"
    EPUB = "epub"
    DOCX = "docx"
    ODT = "odt"
    RTF = "rtf"
    HTML = "html"
    NOTEBOOK = "notebook"
    MAIL = "mail"
    MBOX = "mbox"
    MSG = "msg"
    PPTX = "pptx"
    SPREADSHEET = "spreadsheet"
    ODP = "odp"
    FB2 = "fb2"
    SUBTITLES = "subtitles"
    IMAGE = "image"
    ARTICLE = "article"  # a page from the web
    ARCHIVE = "unpack"  # its files are the documents


# Formats with an encoding; a file that only looks like one of these is read as plain text.
TEXTUAL = frozenset([Format.HTML, Format.ARTICLE, Format.NOTEBOOK, Format.SUBTITLES])
# Plain text, which people write secrets into.
WRITTEN = TEXTUAL | {Format.MAIL, Format.MBOX, Format.FB2}


_ZIP = b"PK\x03\x04"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Word wraps encrypted documents in it
_TAR = slice(257, 262)
_BEFORE_PAGES = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n\f\v"  # marks and white space
_MARK_BYTES = 8  # enough to recognize UTF-16
_PDF_WITHIN = 1024  # bytes in which PDF readers look for its mark
# EPUB and ODT begin with an uncompressed member of this name, which holds their type.
_MIMETYPE = re.compile(rb"mimetype(?:.{0,64}?)(application/[\w.+-]+)", re.DOTALL)
_MIMETYPES = {
    b"application/epub+zip": Format.EPUB,
    b"application/vnd.oasis.opendocument.text": Format.ODT,
    b"application/vnd.oasis.opendocument.text-template": Format.ODT,
    b"application/vnd.oasis.opendocument.presentation": Format.ODP,
    b"application/vnd.oasis.opendocument.presentation-template": Format.ODP,
    b"application/vnd.oasis.opendocument.spreadsheet": Format.SPREADSHEET,
    b"application/vnd.oasis.opendocument.spreadsheet-template": Format.SPREADSHEET,
}
_BY_SUFFIX = {
    ".epub": Format.EPUB,
    ".docx": Format.DOCX,
    ".odt": Format.ODT,
    ".odp": Format.ODP,
    ".ods": Format.SPREADSHEET,
    ".pptx": Format.PPTX,
    ".xlsb": Format.SPREADSHEET,
    ".xlsx": Format.SPREADSHEET,
}
_OFFICE_TYPES = b"[Content_Types].xml"
_OFFICE_FOLDERS = ((b"word/", Format.DOCX), (b"ppt/", Format.PPTX), (b"xl/", Format.SPREADSHEET))
# OLE files: by the names of their streams, which are UTF-16 and may follow after the head, then by suffix.
_OLE_STREAMS = (("__substg1.0_", Format.MSG), ("Workbook", Format.SPREADSHEET))
_OLE_SUFFIXES = {
    ".docx": Format.DOCX,
    ".msg": Format.MSG,
    ".pptx": Format.PPTX,
    ".xls": Format.SPREADSHEET,
    ".xlsx": Format.SPREADSHEET,
    ".xlt": Format.SPREADSHEET,
}
_RTF = re.compile(rb"\{\\rtf[1\\]")
_PDF_OBJECT = re.compile(rb"\d \d+ obj\b")
# Suffixes of source code and text, which may begin like an HTML page without being one.
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
# Places where template marks are examples or belong to another language.
_QUOTED = re.compile(
    rb"(<(script|style|pre|code|textarea|samp|kbd|tt|xmp)\b[^>]*>).*?(?:</\2\b|$)|<!--.*?(?:-->|$)",
    re.IGNORECASE | re.DOTALL,
)
_TEMPLATE = re.compile(rb"\{[{%]|\{# |<%|<\?(?!xml)|\$\{")
_NOTEBOOK_SUFFIXES = ("", ".ipynb", ".json")
_NOTEBOOK = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")


def recognized(head: bytes, path: str) -> Format | None:
    """The format of a file that begins with `head`; None for files that are read as they are, or not at all.

    An HTML page is converted if it is complete. Fragments and templates remain source code.
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
        by_parts = (kind for folder, kind in _OFFICE_FOLDERS if _OFFICE_TYPES in head and folder in head)
        known = by_type or _BY_SUFFIX.get(suffix) or next(by_parts, None)
        return known or (None if signs.unread_kind(head, path) else Format.ARCHIVE)
    if head[_TAR] == b"ustar" or (suffix == ".tar" and signs.is_old_tar(head)):
        return Format.ARCHIVE
    if head.startswith(_OLE):
        by_streams = (kind for name, kind in _OLE_STREAMS if name.encode("utf-16-le") in head)
        return _OLE_SUFFIXES.get(suffix) or next(by_streams, None)
    if suffix == ".ipynb" or (suffix in _NOTEBOOK_SUFFIXES and _is_notebook(head)):
        return Format.NOTEBOOK
    if suffix[1:] not in _SOURCE_SUFFIXES and _is_page(head):
        return Format.HTML
    return Format.IMAGE if signs.is_image(head) else _by_text(head, suffix)


def _by_text(head: bytes, suffix: str) -> Format | None:
    if signs.is_mail(head, suffix):
        return Format.MAIL
    if signs.is_mailbox(head, suffix):
        return Format.MBOX
    if signs.is_subtitles(head, suffix):
        return Format.SUBTITLES
    return Format.FB2 if signs.is_fiction_book(head) else None


def _is_about_pdf(head: bytes) -> bool:
    """Whether a text only begins with PDF's mark: no object follows, and every byte is printable."""
    printable = not head.translate(None, bytes({*range(0x20, 0x7F)} | set(b"\t\n\f\r")))
    return printable and not _PDF_OBJECT.search(head)


def _is_notebook(head: bytes) -> bool:
    if not _NOTEBOOK.match(head):
        return False
    return b'"cell_type"' in head or (b'"nbformat"' in head and (b'"cells"' in head or b'"metadata"' in head))


def _is_page(head: bytes) -> bool:
    if not head.lstrip(_BEFORE_PAGES).startswith(b"<"):  # a quick check
        return False
    if b"\0" in head[:_MARK_BYTES]:
        found = unicode_by_start(head)
        if found is not None:
            head = head[found.mark :].decode(found.codec, "ignore").encode()
    return _WHOLE_PAGE.match(head) is not None and not _TEMPLATE.search(_QUOTED.sub(rb"\1", head))
