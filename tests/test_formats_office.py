"""Presentations, spreadsheets, subtitles and FictionBook: their text is read, the rest is reported."""

from __future__ import annotations

import datetime
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from document_files import archive
from mail_files import compound
from reading import found, note_of, parts_of, sections_of, text_of

from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.documents.formats.spreadsheet import shown


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def slides(draw: Callable[[Any], None]) -> bytes:
    """A presentation that `draw` adds to."""
    from pptx import Presentation

    presentation = Presentation()
    draw(presentation)
    out = io.BytesIO()
    presentation.save(out)
    return out.getvalue()


def workbook(write: Callable[[Any], None]) -> bytes:
    """A workbook that `write` adds sheets to."""
    import xlsxwriter

    out = io.BytesIO()
    with xlsxwriter.Workbook(out, {"in_memory": True}) as book:
        write(book)
    return out.getvalue()


class TestSlides:
    """`.pptx` and `.odp`."""

    def test_titles_lists_notes_and_groups(self) -> None:
        def draw(presentation: Any) -> None:
            slide = presentation.slides.add_slide(presentation.slide_layouts[1])
            slide.shapes.title.text = "The plan"
            frame = slide.placeholders[1].text_frame
            frame.text = "First"
            below = frame.add_paragraph()
            below.text, below.level = "Below it", 1
            slide.notes_slide.notes_text_frame.text = "Say hello."
            box = slide.shapes.add_group_shape().shapes.add_group_shape().shapes.add_textbox(0, 0, 9, 9)
            box.text_frame.text = "in a group"
            hidden = presentation.slides.add_slide(presentation.slide_layouts[6])
            hidden.element.set("show", "0")

        content = slides(draw)
        assert sections_of("a.pptx", content) == ["slide 1: The plan", "slide 2 (hidden)"]
        text = text_of("a.pptx", content)
        assert text.startswith(
            "[slide 1: The plan]\n\nFirst\n  - Below it\n\nin a group\n\nNotes: Say hello.\n\n"
        )

    def test_tables_charts_and_pictures(self) -> None:
        from PIL import Image
        from pptx.chart.data import CategoryChartData
        from pptx.enum.chart import XL_CHART_TYPE

        picture = io.BytesIO()
        Image.new("RGB", (4, 4)).save(picture, "PNG")

        def draw(presentation: Any) -> None:
            slide = presentation.slides.add_slide(presentation.slide_layouts[6])
            table = slide.shapes.add_table(2, 2, 0, 0, 9, 9).table
            for n, text in enumerate(["Team", "W|D", "Ulm\nFC", "5"]):
                table.cell(n // 2, n % 2).text = text
            data = CategoryChartData()
            data.categories = ["East", "West"]
            data.add_series("2026", (1.5, 2))
            slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, 0, 9, 9, data)
            slide.shapes.add_picture(picture, 0, 0)

        content = slides(draw)
        text = text_of("a.pptx", content)
        assert "| Team | W\\|D |\n| --- | --- |\n| Ulm FC | 5 |\n" in text
        assert "|  | 2026 |\n| --- | --- |\n| East | 1.5 |\n| West | 2 |\n" in text
        assert note_of("a.pptx", content) == "a.pptx: left out: pictures (1)"

    def test_an_open_document_presentation(self) -> None:
        from odf.draw import Frame, Page, TextBox
        from odf.opendocument import OpenDocumentPresentation
        from odf.presentation import Notes
        from odf.style import MasterPage, PageLayout
        from odf.table import Table, TableCell, TableRow
        from odf.text import P

        document = OpenDocumentPresentation()
        layout = PageLayout(name="l")
        document.automaticstyles.addElement(layout)
        document.masterstyles.addElement(MasterPage(name="m", pagelayoutname=layout))
        page = Page(masterpagename="m")
        document.presentation.addElement(page)
        for kind, lines in (("title", ["The plan"]), ("outline", ["First", "Second"])):
            frame, box = Frame(width="9cm", height="9cm"), TextBox()
            frame.setAttrNS("urn:oasis:names:tc:opendocument:xmlns:presentation:1.0", "class", kind)
            page.addElement(frame)
            frame.addElement(box)
            for line in lines:
                box.addElement(P(text=line))
        frame, table = Frame(width="9cm", height="9cm"), Table(name="t")
        page.addElement(frame)
        frame.addElement(table)
        for values in (("a", "b"), ("1", "2")):
            row = TableRow()
            table.addElement(row)
            for value in values:
                cell = TableCell()
                row.addElement(cell)
                cell.addElement(P(text=value))
        notes, frame, box = Notes(), Frame(width="9cm", height="9cm"), TextBox()
        page.addElement(notes)
        notes.addElement(frame)
        frame.addElement(box)
        box.addElement(P(text="Say hello."))
        out = io.BytesIO()
        document.write(out)
        (part,) = parts_of("a.odp", out.getvalue())
        assert part.section == "slide 1: The plan"
        table_text = "| a | b |\n| --- | --- |\n| 1 | 2 |"
        assert part.text == f"[slide 1: The plan]\n\nFirst\n\nSecond\n\n{table_text}\n\nNotes: Say hello.\n\n"

    def test_a_locked_one_is_encrypted(self) -> None:
        Path("a.pptx").write_bytes(compound({"EncryptedPackage": b"x" * 9000}))
        Path("b.txt").write_text("b")
        assert found(".").skipped == {"encrypted": 1}


class TestSpreadsheets:
    """`.xlsx`, `.xls` and `.ods`."""

    def test_sheets_are_tables_of_values(self) -> None:
        def write(book: Any) -> None:
            sheet = book.add_worksheet("Budget")
            sheet.write_row(0, 0, ["Item", "Cost", "When", "a|b"])
            sheet.write_row(1, 0, ["Pens", 3, None, True])
            sheet.write_datetime(
                1, 2, datetime.datetime(2026, 3, 1), book.add_format({"num_format": "d.m.yyyy"})
            )
            sheet.write_formula(3, 1, "=SUM(B2:B3)", value=3.5)
            sheet.write_comment("A1", "why?")
            chart = book.add_chart({"type": "bar"})
            chart.add_series({"values": "=Budget!$B$2:$B$3"})
            sheet.insert_chart("F1", chart)
            book.add_worksheet("Empty")
            hidden = book.add_worksheet("Notes")
            hidden.hide()
            hidden.write(40, 9, "far away")

        content = workbook(write)
        assert sections_of("a.xlsx", content) == ["sheet Budget", "sheet Notes (hidden)"]
        assert text_of("a.xlsx", content) == (
            "[sheet Budget]\n| Item | Cost | When | a\\|b |\n| --- | --- | --- | --- |\n"
            "| Pens | 3 | 2026-03-01 | TRUE |\n|  | 3.5 |  |  |\n\n"
            "[sheet Notes (hidden)]\n| far away |\n| --- |\n\n"
        )
        assert note_of("a.xlsx", content) == "a.xlsx: left out: charts (1), comments (1)"
        assert recognized(content[:8192], "stdin") is Format.SPREADSHEET

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (3.0, "3"),
            (0.1 + 0.2, "0.3"),
            (1e300, "1e+300"),
            (-12345678.25, "-12345678.25"),
            (False, "FALSE"),
            ("", ""),
            (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02 03:04:05"),
            (datetime.date(2026, 1, 2), "2026-01-02"),
        ],
    )
    def test_values_as_people_write_them(self, value: Any, text: str) -> None:
        assert shown(value) == text

    def test_a_long_sheet_comes_in_parts(self) -> None:
        def write(book: Any) -> None:
            sheet = book.add_worksheet("Long")
            for n in range(3000):
                sheet.write_row(n, 0, [f"row {n}", n])

        content = workbook(write)
        assert sections_of("a.xlsx", content) == ["sheet Long"]
        parts = parts_of("a.xlsx", content)
        assert len(parts) > 5
        assert "".join(part.text for part in parts).count("\n| row ") == 3000

    def test_an_old_workbook(self) -> None:
        def record(kind: int, content: bytes) -> bytes:
            return struct.pack("<HH", kind, len(content)) + content

        globals_begin = record(0x809, struct.pack("<HHHHII", 0x600, 5, 0, 0, 0, 0))
        end = record(0x0A, b"")
        name = b"\x05\x00Sales"
        start = len(globals_begin) + 4 + 6 + len(name) + len(end)
        bound = record(0x85, struct.pack("<IH", start, 0) + name)
        cells = record(0x204, struct.pack("<HHHHB", 0, 0, 0, 4, 0) + b"Unit")
        cells += record(0x203, struct.pack("<HHHd", 1, 0, 0, 42.0))
        sheet = record(0x809, struct.pack("<HHHHII", 0x600, 16, 0, 0, 0, 0)) + cells + end
        content = compound({"Workbook": (globals_begin + bound + end + sheet).ljust(5000, b"\0")})
        assert text_of("a.xls", content) == "[sheet Sales]\n| Unit |\n| --- |\n| 42 |\n\n"

    def test_an_open_document_sheet(self) -> None:
        from odf.opendocument import OpenDocumentSpreadsheet
        from odf.table import Table, TableCell, TableRow
        from odf.text import P

        document = OpenDocumentSpreadsheet()
        table = Table(name="Blatt")
        document.spreadsheet.addElement(table)
        for value in ("Größe", 42.0):
            row = TableRow()
            table.addElement(row)
            kind = (
                {"valuetype": "string"} if isinstance(value, str) else {"valuetype": "float", "value": value}
            )
            cell = TableCell(**kind)
            row.addElement(cell)
            cell.addElement(P(text=str(value)))
        out = io.BytesIO()
        document.write(out)
        assert text_of("a.ods", out.getvalue()) == "[sheet Blatt]\n| Größe |\n| --- |\n| 42 |\n\n"

    def test_one_that_spans_everything_does_no_harm(self) -> None:
        """Two cells in opposite corners span 17 thousand million cells."""

        def write(book: Any) -> None:
            sheet = book.add_worksheet("Wide")
            sheet.write(0, 0, "one corner")
            sheet.write(1_048_575, 16_383, "another")

        Path("a.xlsx").write_bytes(workbook(write))
        Path("b.txt").write_text("b")
        assert found(".").skipped.total() == 1


SRT = """1\r
00:00:01,000 --> 00:00:02,000\r
<i>Größe</i> &amp; Maß\r
\r
2\r
00:06:01,500 --> 00:06:02,500\r
- What?\r
- That.\r
"""


class TestSubtitles:
    """`.srt` and `.vtt`."""

    def test_text_with_times(self) -> None:
        assert parts_of("a.srt", SRT.encode()) == [
            ("[0:00:01] Größe & Maß\n", "from 0:00:00"),
            ("[0:06:01] - What? - That.\n", "from 0:05:00"),
        ]

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
    def test_encodings(self, encoding: str) -> None:
        assert "Größe & Maß" in text_of("a.srt", SRT.encode(encoding))

    def test_rolling_captions_stand_once(self) -> None:
        captions = (
            "WEBVTT\n\nNOTE a remark\non two lines\n\nSTYLE\n::cue { color: red }\n\n"
            "intro\n00:01.000 --> 00:02.000 align:start\n<v.loud Roger Bingham>We are in New York\n\n"
            "00:02.000 --> 00:03.000\nWe<00:02.500><c> are rolling</c>\n\n"
            "00:03.000 --> 00:04.000\nWe are rolling\non &lt;b&gt;\n"
        )
        text = text_of("a.vtt", captions.encode())
        assert (
            text
            == "[0:00:01] Roger Bingham: We are in New York\n[0:00:02] We are rolling\n[0:00:03] on <b>\n"
        )
        assert note_of("a.vtt", captions.encode()) == "a.vtt: left out: comments and styles (2)"

    def test_from_a_pipe(self) -> None:
        (document,) = found("-", stdin=SRT.encode()).documents
        assert "".join(document.pieces()).startswith("[0:00:01] Größe")

    def test_a_list_of_numbers_is_none(self) -> None:
        assert recognized(b"1\n2\n3\n", "a.txt") is None
        assert recognized(b"WEBVTTX", "a.txt") is None


FB2 = """<?xml version="1.0" encoding="windows-1251"?>
<!-- made by hand --><FictionBook xmlns="http://www.gribuser.ru/xml/fictionbook/2.0" xmlns:l="http://www.w3.org/1999/xlink">
<description><title-info><author><first-name>Ян</first-name><last-name>Юдин</last-name></author>
<book-title>Книга</book-title><annotation><p>About.</p></annotation></title-info></description>
<body><section><title><p>Part</p><p>One</p></title><section><title><p>Глава</p></title>
<p>He <emphasis>ran</emphasis>.<a l:href="#n1" type="note">1</a></p><subtitle>* * *</subtitle>
<poem><stanza><v>a</v><v>b</v></stanza></poem><cite><p>said</p></cite>
<table><tr><th>x</th><th>y</th></tr><tr><td>1</td><td>2</td></tr></table><empty-line/></section></section></body>
<body name="notes"><section id="n1"><title><p>1</p></title><p>A note.</p></section></body>
<binary id="x" content-type="image/png">AA</binary></FictionBook>"""


class TestFictionBook:
    """`.fb2`, and `.fb2.zip` as usually sold."""

    def test_a_book(self) -> None:
        content = FB2.encode("cp1251")
        assert sections_of("a.fb2", content) == ["chapter 1: Part One", "chapter 2: Глава", "notes: 1"]
        text = text_of("a.fb2", content)
        assert text.startswith("# Книга\n\nЯн Юдин\n\nAbout.\n\n[chapter 1: Part One]\n")
        for expected in ("He *ran*.[1]", "a\nb", "> said", "| x | y |\n| --- | --- |\n| 1 | 2 |", "A note."):
            assert expected in text
        assert note_of("a.fb2", content) == "a.fb2: left out: pictures (1)"

    def test_entities_are_not_expanded(self) -> None:
        bomb = b'<!DOCTYPE x [<!ENTITY a "ha">]>'
        content = b"<FictionBook>" + bomb + b"<body>&a;</body></FictionBook>"
        Path("a.fb2").write_bytes(content)
        Path("b.txt").write_text("b")
        assert found(".").skipped == {"damaged": 1}


class TestNames:
    """What is not read is reported by its type."""

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("a.mobi", bytes(60) + b"BOOKMOBI" + bytes(100), "1 .mobi (not supported)"),
            ("a.azw3", bytes(60) + b"BOOKMOBI" + bytes(100), "1 .azw3 (not supported)"),
            ("a.doc", compound({"WordDocument": b"x" * 5000}), "1 .doc (not supported)"),
            ("a.ppt", compound({"PowerPoint Document": b"x" * 5000}), "1 .ppt (not supported)"),
            ("a", b"7z\xbc\xaf\x27\x1c" + bytes(99), "1 .7z (not supported)"),
            ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(99), "1 pictures (`ocr` always reads their text)"),
            ("a.bin", bytes(99), "1 binary"),
            (
                "model.bin",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
                "1 Git LFS pointers (git lfs pull fetches the files)",
            ),
        ],
    )
    def test_by_name(self, name: str, content: bytes, line: str) -> None:
        Path(name).write_bytes(content)
        Path("read.txt").write_text("b")
        assert found(".").skipped_line() == f"skipped 1: {line}"

    def test_what_an_extra_would_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reading process uses this one's import paths."""
        blocked = Path("blocked")
        blocked.mkdir()
        for module in ("pptx", "odf"):
            (blocked / f"{module}.py").write_text("raise ImportError")
        monkeypatch.syspath_prepend(str(blocked.absolute()))
        Path("docs").mkdir()
        for name in ("a.pptx", "b.pptx"):
            Path("docs", name).write_bytes(archive({"[Content_Types].xml": "", "ppt/presentation.xml": ""}))
        Path("docs/c.odt").write_bytes(archive({}, first="application/vnd.oasis.opendocument.text"))
        Path("docs/d.txt").write_text("d")
        assert found("docs").skipped_line() == (
            "skipped 3: 2 .pptx need adamas[office], 1 .odt needs adamas[office]; "
            "pip install 'adamas[office]' reads them"
        )
