"""How well PDFs are read: their words and the order of them, against the same documents as text or HTML.

    python docs/measure_pdf.py PDF REFERENCE [PDF REFERENCE ...] [--with pdfplumber,pdfminer]

Prints a Markdown row for each PDF and each reader: milliseconds per page (the fastest of three readings),
precision and recall of words, and of pairs of neighbouring words, which drop if words are glued or lines are
out of order. `pdfium` is PDFium's own text of a page. The documents come from Debian's packages
developers-reference, debian-policy and bash-doc.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from adamas_cli.documents.formats import pdf
from adamas_cli.documents.formats.markup import markdown
from adamas_cli.documents.parts import Part

_WORD = re.compile(r"\w[\w'./:-]*\w|\w")
_PAGE_NAME = re.compile(r"^\[page \d+.*\]$", re.MULTILINE)


def adamas(path: str) -> str:
    return _PAGE_NAME.sub("", "".join(part.text for part in pdf.read(path) if isinstance(part, Part)))


def pdfium(path: str) -> str:
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        return "\n".join(page.get_textpage().get_text_bounded() for page in document)


def pdfplumber(path: str) -> str:
    import pdfplumber  # type: ignore[import-not-found]

    with pdfplumber.open(path) as document:
        return "\n".join(page.extract_text() or "" for page in document.pages)


def pdfminer(path: str) -> str:
    from pdfminer.high_level import extract_text  # type: ignore[import-not-found]

    return str(extract_text(path))


READERS: dict[str, Callable[[str], str]] = {
    reader.__name__: reader for reader in (adamas, pdfium, pdfplumber, pdfminer)
}


def words(text: str) -> list[str]:
    return _WORD.findall(text.replace("\u2019", "'"))


def reference(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return markdown(content) if path.suffix == ".html" else content.decode()


def shares(found: Counter[object], wanted: Counter[object]) -> str:
    both = (found & wanted).total()
    return f"{both / found.total():.3f} | {both / wanted.total():.3f}"


def main() -> None:
    import pypdfium2

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--with", dest="others", default="")
    options = parser.parse_args()
    print("| document | pages | reader | ms a page | words: precision | recall | pairs: precision | recall |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for path, text in zip(options.paths[::2], options.paths[1::2], strict=True):
        wanted = words(reference(Path(text)))
        pages = len(pypdfium2.PdfDocument(path))
        for name in ["pdfium", "adamas", *filter(None, options.others.split(","))]:
            times = []
            for _ in range(3 if name in ("pdfium", "adamas") else 1):
                begun = time.process_time()
                found = words(READERS[name](path))
                times.append(time.process_time() - begun)
            counts = shares(Counter(found), Counter(wanted))
            pairs = shares(Counter(itertools.pairwise(found)), Counter(itertools.pairwise(wanted)))
            speed = f"{min(times) / pages * 1e3:.1f}"
            print(f"| {Path(path).name} | {pages} | {name} | {speed} | {counts} | {pairs} |")


if __name__ == "__main__":
    main()
