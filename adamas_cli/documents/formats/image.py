"""Pictures of pages, read by OCR."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from adamas_cli.documents.formats.ocr import Pages, remarks
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAX_PIXELS = 200_000_000


def read(path: str, *, ocr: str, language: str, sample: bool = False) -> Iterator[Part | Remark]:
    """A section for each page, "page 2"; most pictures have one page. Raises UnreadableError, and what
    Pillow raises for damaged files. `sample` reads only the first page, as an estimate for all.
    """
    from PIL import Image, ImageOps, ImageSequence

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    pages = Pages(language)
    number, text = 0, ""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                frames = ImageSequence.Iterator(image) if image.format in ("TIFF", "MPO") else [image]
                for number, frame in enumerate(frames, start=1):
                    if number == 1 or not sample:
                        text = pages.of_image(ImageOps.exif_transpose(frame))
                    yield Part(f"[page {number}]\n{text}\n\n" if text else "", f"page {number}")
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnreadableError(Trouble.TOO_LARGE, str(error)) from error
    yield from remarks(number, pages.seconds / max(1, pages.pages) * number, sample=sample)
