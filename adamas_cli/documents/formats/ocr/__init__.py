"""OCR of page pictures, through the extra `ocr`; by tesseract for languages that this lacks."""

from __future__ import annotations

import io
import resource
import shutil
import subprocess
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from adamas_cli.documents.formats.limits import limit
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.remark import Remark

if TYPE_CHECKING:
    from adamas_cli.documents.formats.ocr.layout import Box

MEMORY_BYTES = 4 * 2**30  # address space: twice what a page needs
TESSERACT_SECONDS = 120
_DOTS_PER_INCH = 200
_LONGEST_SIDE = 2600  # pixels; RapidOCR itself uses at most 2000
_DOUBTFUL = 0.85  # average score of all lines below which the page may be upside down
_SURE = 0.5  # minimum score of a line: below this it is noise
# Languages of RapidOCR's bundled model: Chinese, Japanese, English and other Latin scripts, all at once.
_NAMES = (
    "auto af az bs ca ch chinese_cht cs cy da de en es et eu fi fr ga gl hr hu id is it ja ku la lb lt lv mi "
    "ms mt nl no oc pl pt qu rm ro sk sl sq sv sw tl tr uz vi zh"
)
BUILT_IN = frozenset(_NAMES.split())
# tesseract's names of the most common other languages.
_OTHERS = (
    "ar:ara be:bel bg:bul bn:ben el:ell fa:fas he:heb hi:hin hy:hye ka:kat kk:kaz ko:kor mk:mkd mn:mon "
    "ru:rus sr:srp ta:tam te:tel th:tha uk:ukr ur:urd yi:yid"
)
_TESSERACT = dict(pair.split(":") for pair in _OTHERS.split())

READ = "pages read by OCR"
SAMPLED = "pages for OCR, whose tokens are an estimate"
_SECONDS = "seconds that it will take"


def remarks(pages: int, seconds: float, *, sample: bool) -> list[Remark]:
    """The number of pages read by OCR; for a sample, also the estimated time for all of them."""
    if not sample:
        return [Remark(READ, pages, left_out=False)]
    return [Remark(SAMPLED, pages, left_out=False), Remark(_SECONDS, round(seconds), left_out=False)]


def trouble_with(language: str) -> str | None:
    """Why a language cannot be read on this machine, as a sentence; None if it can."""
    if language in BUILT_IN:
        from importlib.util import find_spec

        there = find_spec("rapidocr") is not None and find_spec("onnxruntime") is not None
        return None if there else "OCR needs pip install 'adamas[ocr]'."
    name = _TESSERACT.get(language, language)
    if not shutil.which("tesseract"):
        return f"OCR of {language} needs tesseract with its data for {name}, which is not installed."
    if name not in _tesseract_languages():
        return f"OCR of {language} needs tesseract's data for {name} (Debian: tesseract-ocr-{name})."
    return None


class Pages:
    """Reads pages of one document. `pages` counts the pages read so far, in `seconds`."""

    def __init__(self, language: str) -> None:
        self._language = language
        self.pages = 0
        self.seconds = 0.0

    def of_pdf(self, page: Any) -> str:
        """The text of a pypdfium2 page. Raises UnreadableError."""
        width, height = page.get_size()
        scale = min(_DOTS_PER_INCH / 72, _LONGEST_SIDE / max(width, height, 1))
        return self.of_image(page.render(scale=scale).to_pil())

    def of_image(self, image: Any) -> str:
        """The text of a Pillow image. Raises UnreadableError."""
        began = time.monotonic()
        try:
            image = image.convert("RGB")
            if self._language in BUILT_IN:
                return _by_rapidocr(image)
            return _by_tesseract(image, _TESSERACT.get(self._language, self._language))
        finally:
            self.pages += 1
            self.seconds += time.monotonic() - began


def _by_rapidocr(image: Any) -> str:
    import numpy as np

    from adamas_cli.documents.formats.ocr.layout import text_of

    pixels = np.asarray(image)[:, :, ::-1]  # blue first, as OpenCV expects
    boxes = _boxes(pixels)
    if boxes and sum(box.height > 1.5 * box.width for box in boxes) > len(boxes) / 2:  # lies on its side
        turned = [np.ascontiguousarray(np.rot90(pixels, turns)) for turns in (1, 3)]
        boxes = max(map(_boxes, turned), key=_sureness)
    elif boxes and sum(box.score for box in boxes) < _DOUBTFUL * len(boxes):  # may be upside down
        boxes = max(boxes, _boxes(np.ascontiguousarray(pixels[::-1, ::-1])), key=_sureness)
    return text_of(boxes)


def _boxes(pixels: Any) -> list[Box]:
    found = _engine()(pixels)
    if found.boxes is None or found.txts is None:
        return []
    return [
        _box(corners, text, score)
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
        if score >= _SURE and text.strip()
    ]


def _box(corners: Any, text: str, score: float) -> Box:
    from adamas_cli.documents.formats.ocr.layout import Box

    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Box(left, top, right, bottom, text, score)


def _sureness(boxes: list[Box]) -> float:
    return sum(box.score * len(box.text) for box in boxes)


@cache
def _engine() -> Any:
    """The engine, loaded once; its models are bundled with its wheel. Raises UnreadableError."""
    limit(resource.RLIMIT_AS, MEMORY_BYTES)
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise UnreadableError(Trouble.NO_OCR) from error
    # Its classifier turns single upright lines; adamas turns whole pages.
    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def _by_tesseract(image: Any, name: str) -> str:
    out = io.BytesIO()
    image.save(out, "PPM")
    try:
        done = subprocess.run(
            ["tesseract", "-", "-", "-l", name, "--dpi", str(_DOTS_PER_INCH)],
            input=out.getvalue(),
            capture_output=True,
            timeout=TESSERACT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(Trouble.TOO_SLOW) from error
    except OSError as error:
        raise UnreadableError(Trouble.NO_OCR) from error
    if done.returncode:
        raise UnreadableError(Trouble.NO_OCR, done.stderr.decode("utf-8", "replace").strip()[-200:])
    return done.stdout.decode("utf-8", "replace").replace("\f", "").strip()


def _tesseract_languages() -> list[str]:
    done = subprocess.run(["tesseract", "--list-langs"], capture_output=True, text=True, check=False)
    return done.stdout.split()
