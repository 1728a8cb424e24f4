"""Small files of other formats, written by hand."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
    'full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
RELATIONSHIPS = "http://schemas.openxmlformats.org/package/2006/relationships"


def pdf(pages: Sequence[str], trailer: str = "") -> bytes:
    """A PDF with a line of text on each page; an empty string is a page without a text layer."""
    drawn = [f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else "72 720 100 100 re f" for text in pages]
    return drawn_pdf(drawn, trailer=trailer)


def drawn_pdf(
    pages: Sequence[str],
    *,
    page: str = "",
    catalog: str = "",
    more: Sequence[str] = (),
    trailer: str = "",
) -> bytes:
    """A PDF of pages of 612 by 792 points with these contents, in Helvetica as /F1.

    page, catalog: extra entries of each page and of the catalog. more: extra objects, numbered from
    4 + 2 * len(pages), which those entries can refer to.
    """
    count = len(pages)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, drawn in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> {page} >>"
        )
        objects.append(f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream")
    objects += more
    out = io.BytesIO(b"")
    out.write(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(f"{number} 0 obj\n{body}\nendobj\n".encode())
    start = out.tell()
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode())
    out.write(b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\n".encode())
    out.write(f"startxref\n{start}\n%%EOF\n".encode())
    return out.getvalue()


def encrypted_pdf() -> bytes:
    """A PDF encrypted with an unknown password."""
    key = "00" * 32
    identity = "/ID [<00> <00>]"
    return pdf(
        ["secret"], f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >> {identity}"
    )


def archive(members: Mapping[str, str | bytes], first: str | None = None) -> bytes:
    """A zip file; `first` is the type at the start of an EPUB or ODT, uncompressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        if first is not None:
            packed.writestr("mimetype", first, zipfile.ZIP_STORED)
        for name, content in members.items():
            packed.writestr(name, content)
    return out.getvalue()


def epub_members(chapters: Sequence[tuple[str, str]], prolog: str = "") -> dict[str, str]:
    """Chapters (title in the table of contents, body); the spine is not in the order of their names."""
    names = [f"text/{chr(ord('z') - n)} {n}.xhtml" for n in range(len(chapters))]
    items = "".join(
        f'<item id="c{n}" href="{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(names)
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    points = "".join(
        f"<navPoint><navLabel><text>{title}</text></navLabel><content src='{name}#top'/></navPoint>"
        for name, (title, _) in zip(names, chapters, strict=True)
        if title
    )
    package = (
        f'{prolog}<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}'
        '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
        f'<spine toc="ncx">{spine}</spine></package>'
    )
    pages = {
        f"OEBPS/{name}": f"<!DOCTYPE html><html><head><title>no</title></head><body>{body}</body></html>"
        for name, (_, body) in zip(names, chapters, strict=True)
    }
    toc = f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{points}</navMap></ncx>'
    return {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": package,
        "OEBPS/toc.ncx": toc,
        **pages,
    }


def epub(chapters: Sequence[tuple[str, str]], prolog: str = "") -> bytes:
    """An EPUB 2 book."""
    return archive(epub_members(chapters, prolog), first="application/epub+zip")


def docx_members(paragraphs: Sequence[tuple[str, str]], prolog: str = "") -> dict[str, str]:
    """Paragraphs (style such as `Heading1` or nothing, text)."""
    body = ""
    for style, text in paragraphs:
        properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        body += f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"
    types = (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'wordprocessingml.document.main+xml"/></Types>'
    )
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    return {
        "[Content_Types].xml": types,
        "_rels/.rels": f'<Relationships xmlns="{RELATIONSHIPS}"><Relationship Id="r1" Type="{office}" '
        'Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'{prolog}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
    }


def docx(paragraphs: Sequence[tuple[str, str]], prolog: str = "") -> bytes:
    """A Word document."""
    return archive(docx_members(paragraphs, prolog))


def odt_members(content: str) -> dict[str, str]:
    """An OpenDocument text with this XML in its body."""
    office = "urn:oasis:names:tc:opendocument:xmlns:office:1.0"
    text = "urn:oasis:names:tc:opendocument:xmlns:text:1.0"
    manifest = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
    kind = "application/vnd.oasis.opendocument.text"
    return {
        "META-INF/manifest.xml": f'<m:manifest xmlns:m="{manifest}"><m:file-entry m:full-path="/" '
        f'm:media-type="{kind}"/><m:file-entry m:full-path="content.xml" m:media-type="text/xml"/>'
        "</m:manifest>",
        "content.xml": f'<o:document-content xmlns:o="{office}" xmlns:t="{text}" o:version="1.2"><o:body>'
        f"<o:text>{content}</o:text></o:body></o:document-content>",
    }


def odt(content: str) -> bytes:
    """The file of `odt_members`."""
    return archive(odt_members(content), first="application/vnd.oasis.opendocument.text")


RTF = rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}\f0 The caf\'e9 opens\par at \b nine\b0.\par}"
