"""PDF files, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator

from adamas_cli.documents.formats.pdf_scanned import ScannedPages
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import ByOcr, Part

# Where a word is broken at the end of a line, PDFium writes one of these in place of the hyphen.
_BROKEN_WORD = ("\ufffe\n", "\x02\n")
_LEADERS = re.compile(r"(?: ?\.){5,} ?")  # from a title to its page number, a token for each dot or two


def read(
    path: str, *, ocr: str = "never", language: str = "auto", sample: bool = False
) -> Iterator[Part | ByOcr]:
    """A section for each page, "page 12", whose text begins with the line `[page 12]`; an empty text where
    the page has none or is damaged. Raises UnreadableError.

    ocr: "auto" reads pages that are pictures by OCR, "always" all of them, `sample` the first of them alone,
    as an estimate for the others.
    """
    import pypdfium2 as pdfium
    from pypdfium2.raw import FPDF_ERR_PASSWORD

    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = error.err_code == FPDF_ERR_PASSWORD
        raise UnreadableError(Trouble.ENCRYPTED if encrypted else Trouble.DAMAGED, str(error)) from error
    scanned = ScannedPages(ocr, language, sample=sample)
    with document:
        for index in range(len(document)):
            label = f"page {index + 1}"
            try:
                page = document[index]
                text = page.get_textpage().get_text_bounded()
                text = scanned.text(page, text)
                page.close()
            except pdfium.PdfiumError:
                text = ""
            text = _tidy(text)
            yield Part(f"[{label}]\n{text}\n\n" if text else "", label)
    if scanned.count:
        yield ByOcr(scanned.count, scanned.seconds, sample)


def _tidy(text: str) -> str:
    text = text.replace("\r\n", "\n")
    for broken in _BROKEN_WORD:
        text = text.replace(broken, "")
    return _LEADERS.sub(" … ", text).strip()
