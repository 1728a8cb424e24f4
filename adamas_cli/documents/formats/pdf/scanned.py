"""Pages of a PDF that are pictures, for OCR."""

from __future__ import annotations

from itertools import islice
from typing import Any

from adamas_cli.documents.formats.ocr import Pages

_FEW_CHARACTERS = 40  # such as a stamp or a page number on a scan
_MANY_CURVES = 200
_COVERED = 0.4  # share of the page that one picture covers


class ScannedPages:
    """Replaces the text of scanned pages by OCR's; counts those pages."""

    def __init__(self, ocr: str, language: str, *, sample: bool) -> None:
        """ocr: "never", "auto" or "always". sample: read only the first page, as an estimate for all."""
        self._ocr = ocr
        self._pages = Pages(language)
        self._samples = sample
        self._sample: str | None = None
        self.count = 0

    @property
    def seconds(self) -> float:
        """The time that reading `count` pages took or will take."""
        return self._pages.seconds / max(1, self._pages.pages) * self.count

    def text(self, page: Any, text: str) -> str:
        """The text of a pypdfium2 page whose own text is `text`. Raises UnreadableError."""
        if self._ocr == "never" or not (self._ocr == "always" or is_scanned(page, text)):
            return text
        self.count += 1
        if self._samples and self._sample is not None:
            return self._sample
        self._sample = self._pages.of_pdf(page)
        return self._sample if len(self._sample.split()) >= len(text.split()) else text


def is_scanned(page: Any, text: str) -> bool:
    """Whether a page with almost no text shows some: as a picture of a page, or drawn as many curves."""
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE, FPDF_PAGEOBJ_PATH

    if len("".join(text.split())) > _FEW_CHARACTERS:
        return False
    width, height = page.get_size()
    for found in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE]):
        left, bottom, right, top = found.get_bounds()
        if (right - left) * (top - bottom) > _COVERED * width * height:
            return True
    paths = page.get_objects(filter=[FPDF_PAGEOBJ_PATH])
    return sum(1 for _ in islice(paths, _MANY_CURVES)) == _MANY_CURVES
