"""Pictures of pages become text in reading order, where and when the user asks for it."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Run
from document_files import pdf
from mail_files import mail
from PIL import Image, ImageDraw, ImageFont
from reading import found, note_of, text_of

from adamas_cli.documents import ocr_options
from adamas_cli.documents.formats import ocr
from adamas_cli.documents.formats.ocr.layout import Box
from adamas_cli.documents.formats.ocr.layout import text_of as laid_out
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.errors import NothingReadableError, UsageError

LINES = ("The ferry leaves Ulm", "at nine in the morning.")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def picture(lines: Sequence[str] = LINES) -> Image.Image:
    """Black printed lines on white."""
    image = Image.new("L", (700, 60 + 50 * len(lines)), 255)
    for n, line in enumerate(lines):
        ImageDraw.Draw(image).text((40, 30 + 50 * n), line, fill=0, font=ImageFont.load_default(size=32))
    return image


def saved(pages: Sequence[Image.Image], kind: str) -> bytes:
    """The pictures as a file."""
    out = io.BytesIO()
    more = {"save_all": True, "append_images": list(pages[1:])} if len(pages) > 1 else {}
    pages[0].save(out, kind, **more)
    return out.getvalue()


class TestLayout:
    """Boxes are read as people read: columns one by one, rows of tables as rows."""

    def column(self, left: float, words: Sequence[str], width: float = 200, top: float = 0) -> list[Box]:
        return [
            Box(left, top + 15 * n, left + width, top + 15 * n + 10, word, 1.0)
            for n, word in enumerate(words)
        ]

    def test_columns_are_read_one_after_the_other(self) -> None:
        boxes = self.column(0, "abcd") + self.column(240, "efgh")
        assert laid_out(boxes) == "a\nb\nc\nd\n\ne\nf\ng\nh"
        assert laid_out(boxes[::-1]) == "a\nb\nc\nd\n\ne\nf\ng\nh"

    def test_a_title_goes_before_columns_and_a_foot_behind(self) -> None:
        boxes = self.column(0, "abc", top=40) + self.column(240, "def", top=40)
        boxes += [Box(0, 0, 440, 12, "Title"), Box(0, 120, 440, 130, "Foot")]
        assert laid_out(boxes) == "Title\n\na\nb\nc\n\nd\ne\nf\n\nFoot"

    def test_rows_of_a_table_stay_rows(self) -> None:
        boxes = [
            Box(100 * x, 15 * y, 100 * x + 20, 15 * y + 10, f"{x}{y}") for x in range(3) for y in range(4)
        ]
        assert laid_out(boxes).splitlines()[1] == "01 | 11 | 21"

    def test_words_of_a_line_and_paragraphs(self) -> None:
        boxes = [Box(50, 1, 90, 11, "two"), Box(0, 0, 45, 10, "one"), Box(0, 14, 80, 24, "three")]
        boxes.append(Box(0, 45, 80, 55, "four"))
        assert laid_out(boxes) == "one two\nthree\n\nfour"
        assert laid_out([]) == ""


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_picture_that_is_named_is_read(kind: str) -> None:
    assert text_of("a", saved([picture()], kind)) == f"[page 1]\n{LINES[0]}\n{LINES[1]}\n\n"


@pytest.mark.parametrize("degrees", [90, 180])
def test_a_picture_that_is_turned(degrees: int) -> None:
    text = text_of("a.png", saved([picture().rotate(degrees, expand=True)], "PNG"))
    assert text == f"[page 1]\n{LINES[0]}\n{LINES[1]}\n\n"


def test_scanned_pages_stand_between_the_others() -> None:
    scan = saved([picture(), picture(["The second page."])], "PDF")
    assert text_of("scan.pdf", scan) == (
        f"[page 1]\n{LINES[0]}\n{LINES[1]}\n\n[page 2]\nThe second page.\n\n"
    )
    assert note_of("scan.pdf", scan) == "scan.pdf: pages read by OCR (2)"


def test_pages_of_text_and_empty_ones_are_left_alone() -> None:
    Path("a.pdf").write_bytes(pdf(["A page of text.", ""]))
    assert found("a.pdf").notes == ["a.pdf: 1 of 2 pages have no text (scanned?)"]
    Path("b.pdf").write_bytes(pdf(["A page of text."]))
    assert found("b.pdf", ocr="always").note_lines() == ["b.pdf: pages read by OCR (1)"]
    Path("scan.pdf").write_bytes(saved([picture()], "PDF"))
    with pytest.raises(NothingReadableError, match=r"1 of 1 pages have no text \(scanned\?\)"):
        found("scan.pdf", ocr="never")


def test_pictures_in_folders_are_read_where_that_is_asked_for() -> None:
    Path("docs").mkdir()
    Path("docs/a.png").write_bytes(saved([picture()], "PNG"))
    Path("docs/b.txt").write_text("b")
    assert found("docs").skipped_line() == "skipped 1: 1 pictures (`ocr` always reads their text)"
    assert [document.path for document in found("docs", ocr="always").documents] == [
        "docs/a.png",
        "docs/b.txt",
    ]
    assert found("docs/a.png", "docs/b.txt", ocr="never").skipped.total() == 1


def test_a_sample_is_an_estimate_until_all_is_read() -> None:
    Path("scan.tiff").write_bytes(saved([picture(), picture(["Another."]), picture()], "TIFF"))
    collection = found("scan.tiff", ocr_sample=True)
    assert "".join(collection.documents[0].pieces()).count(LINES[0]) == 3
    (note,) = collection.note_lines()
    assert note.startswith("scan.tiff: pages for OCR, whose tokens are an estimate (3)")


def test_a_plan_does_not_read_what_it_plans(
    run_here: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADAMAS_NO_DOC_CACHE")
    Path("scan.pdf").write_bytes(saved([picture()] * 2, "PDF"))
    Path("text.pdf").write_bytes(pdf(["A page of text."]))
    arguments = ("plan", "scan.pdf", "text.pdf", "Where?", "-m", tiny_model, "--no-calibrate")
    _, _, err = run_here(*arguments)
    assert "scan.pdf: pages for OCR, whose tokens are an estimate (2)" in err
    from adamas_cli.documents import Selection, collect
    from adamas_cli.progress import Silent

    read = collect(["scan.pdf"], Selection(), stdin=io.BytesIO(), progress=Silent())
    assert read.note_lines() == ["scan.pdf: pages read by OCR (2)"]
    _, _, err = run_here(*arguments)
    assert "scan.pdf: pages read by OCR (2)" in err


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr_options, "trouble_with", lambda language: "OCR needs pip install 'adamas[ocr]'.")
    Path("a.png").write_bytes(saved([picture()], "PNG"))
    Path("b.pdf").write_bytes(pdf(["text", ""]))
    collection = found("a.png", "b.pdf")
    expected = "skipped 1: 1 .png needs adamas[ocr]; pip install 'adamas[ocr]' reads them"
    assert collection.skipped_line() == expected
    assert collection.notes == [
        "b.pdf: 1 of 2 pages have no text (scanned?); pip install 'adamas[ocr]' reads scans"
    ]
    with pytest.raises(UsageError, match="OCR needs pip install"):
        found("b.pdf", ocr="always")


def test_languages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for tesseract, with its command line, that prints how it was called."""
    assert ocr.trouble_with("de") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (
        ocr.trouble_with("ru") == "OCR of ru needs tesseract with its data for rus, which is not installed."
    )
    program = tmp_path / "tesseract"
    program.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "print('eng\\nrus' if sys.argv[1] == '--list-langs' else 'Called ' + ' '.join(sys.argv[3:5]))\n"
    )
    program.chmod(0o755)
    assert ocr.trouble_with("ko") == "OCR of ko needs tesseract's data for kor (Debian: tesseract-ocr-kor)."
    Path("a.png").write_bytes(saved([picture()], "PNG"))
    (document,) = found("a.png", ocr_language="ru").documents
    assert "".join(document.pieces()) == "[page 1]\nCalled -l rus\n\n"
    with pytest.raises(UsageError, match="tesseract-ocr-kor"):
        found("a.png", ocr_language="ko")


def test_a_picture_that_would_grow_is_left_out() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9000)))
    Path("a.png").write_bytes(bomb + chunk(b"IEND", b""))
    Path("b.txt").write_text("b")
    assert found("a.png", "b.txt").skipped == {"too large when unpacked": 1}


def test_pictures_in_mails_are_counted_not_read() -> None:
    content = mail(attachments=[("scan.png", saved([picture()], "PNG"))]).as_bytes()
    assert "pictures (1)" in note_of("a.eml", content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"])
def test_what_is_a_picture(kind: str) -> None:
    assert recognized(saved([picture()], kind)[:8192], "a") is Format.IMAGE


@pytest.mark.parametrize("text", [b"BMW is a word\n", b"GIF89a is the mark of a format\n"])
def test_words_that_pictures_begin_with(text: bytes) -> None:
    assert recognized(text, "a") is None
