"""PDF files, page by page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from adamas_cli.documents.formats.ocr import remarks
from adamas_cli.documents.formats.pdf.hyphens import Vocabulary
from adamas_cli.documents.formats.pdf.outline import page_names
from adamas_cli.documents.formats.pdf.page import page_lines
from adamas_cli.documents.formats.pdf.repeated import PageLines, repeated
from adamas_cli.documents.formats.pdf.scanned import ScannedPages
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

_HEADS = "running heads and page numbers"
_SILENCE_SECONDS = 5.0


def read(
    path: str, *, ocr: str = "never", language: str = "auto", sample: bool = False
) -> Iterator[Part | Remark]:
    """A section for each page, named as `page_names` says, whose text begins with its name: `[page 12]`; an
    empty text if the page has none or is damaged. Raises UnreadableError.

    ocr: "auto" reads pages that are pictures by OCR, "always" all pages; `sample` reads only the first of
    them, as an estimate for the others.

    All pages are examined before the first is yielded: broken words are judged by the rest of the document,
    and running heads by the pages around them. If that takes long, empty parts show progress.
    """
    import pypdfium2 as pdfium
    from pypdfium2.raw import FORMTYPE_XFA_FOREGROUND, FORMTYPE_XFA_FULL, FPDF_ERR_PASSWORD

    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = error.err_code == FPDF_ERR_PASSWORD
        raise UnreadableError(Trouble.ENCRYPTED if encrypted else Trouble.DAMAGED, str(error)) from error
    pages: list[PageLines] = []
    scanned = ScannedPages(ocr, language, sample=sample)
    by_ocr: dict[int, str] = {}  # page texts by page index
    spoken = time.monotonic()
    with document:
        with suppress(pdfium.PdfiumError):
            document.init_forms()
        names = page_names(document)
        attached = document.count_attachments()
        dynamic = document.get_formtype() in (FORMTYPE_XFA_FULL, FORMTYPE_XFA_FOREGROUND)
        for index in range(len(document)):
            try:
                page = document[index]
                found = page_lines(page)
                own = "\n".join(line.text for line in found.lines)
                text = scanned.text(page, own)
                page.close()
            except pdfium.PdfiumError:
                found, own, text = PageLines([], 0.0, 0.0), "", ""
            if text != own:
                by_ocr[index], found = text, PageLines([], 0.0, 0.0)
            pages.append(found)
            if time.monotonic() - spoken > _SILENCE_SECONDS:
                spoken = time.monotonic()
                yield Part("")
    heads = repeated(pages)
    texts = [
        [line.text for at, line in enumerate(page.lines) if at not in left_out]
        for page, left_out in zip(pages, heads, strict=True)
    ]
    words = Vocabulary()
    for lines in texts:
        words.add(lines)
    for index, (label, lines) in enumerate(zip(names, texts, strict=True)):
        text = by_ocr.get(index) or words.text(lines).strip()
        yield Part(f"[{label}]\n{text}\n\n" if text else "", label)
    for count, kind in ((sum(map(len, heads)), _HEADS), (attached, "attached files"), (dynamic, "XFA forms")):
        if count:
            yield Remark(kind, count)
    if scanned.count:
        yield from remarks(scanned.count, scanned.seconds, sample=sample)
