"""OCR against the text of a PDF: its pages are drawn, read by both engines, and compared word by word.

python docs/measure_ocr.py FILE.pdf FIRST LAST [rapidocr|tesseract]
"""

from __future__ import annotations

import difflib
import re
import resource
import sys
from collections import Counter

import pypdfium2 as pdfium

from adamas_cli.documents.formats.ocr import Pages, _by_tesseract

DOTS_PER_INCH = 200


def words(text: str) -> list[str]:
    """Lower-case words; those broken at line ends are joined."""
    return re.findall(r"\w+", text.replace("\ufffe", "").replace("\x02", "").lower())


def used() -> float:
    """CPU seconds of this process and its children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def main() -> None:
    """Print a row for each page and engine."""
    path, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engines = sys.argv[4:] or ["rapidocr", "tesseract"]
    pages = Pages("auto")
    document = pdfium.PdfDocument(path)
    print("| page | engine | words found | words right | in order | CPU seconds |")
    print("|---:|---|---:|---:|---:|---:|", flush=True)
    for number in range(first, last + 1):
        page = document[number - 1]
        wanted = words(page.get_textpage().get_text_range())
        image = page.render(scale=DOTS_PER_INCH / 72).to_pil().convert("RGB")
        for engine in engines:
            before = used()
            text = pages.of_image(image) if engine == "rapidocr" else _by_tesseract(image, "eng")
            seconds = used() - before
            found = words(text)
            common = sum((Counter(wanted) & Counter(found)).values())
            matcher = difflib.SequenceMatcher(None, wanted, found, autojunk=False)
            ordered = sum(block.size for block in matcher.get_matching_blocks())
            shares = [common / len(wanted), common / len(found), ordered / len(wanted)]
            columns = " | ".join(f"{share:.3f}" for share in shares)
            print(f"| {number} | {engine} | {columns} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
