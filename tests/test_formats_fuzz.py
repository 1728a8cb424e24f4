"""Mutated files of each format give text or a documented reason, in time."""

from __future__ import annotations

import gzip
import io
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from document_files import RTF, archive, docx, docx_members, epub, epub_members, odt, odt_members, pdf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mail_files import mail, outlook

from adamas_cli.documents.file_tree import Written
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.gzipped import Gzipped
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

SECONDS = 20.0
CHAPTERS = [
    ("One", "<h1>One</h1><p>Alice &amp; the <b>rabbit</b>.</p><table><tr><td>a</td></tr></table>"),
    ("", "<p>x</p>"),
]
PARAGRAPHS = [("Heading1", "Title"), ("", "Some text."), ("", "More of it.")]
CONTENT = '<t:h t:outline-level="1">Title</t:h><t:p>Some <t:span>text</t:span>.</t:p>'
PAGE = b"""<!doctype html><html><body><h1>Title</h1><p>A <a href="https://example.org">link</a> &lt; &#65;</p>
<table><tr><th colspan="2">a</th></tr></table><ol start="3"><li>one<ul><li>two</ul></ol>
<pre>code</pre></body></html>"""
MAIL = mail(page="<p>See you at <b>nine</b>.</p>", attachments=[("a.csv", b"a,b"), ("b.rtf", RTF)]).as_bytes()
FB2 = b"""<?xml version="1.0"?><FictionBook><description><title-info><book-title>T</book-title></title-info>
</description><body><section><title><p>One</p></title><p>He <emphasis>ran</emphasis>.</p>
<table><tr><td>a</td></tr></table><poem><stanza><v>b</v></stanza></poem></section></body></FictionBook>"""
SUBTITLES = b"1\n00:00:01,000 --> 00:00:02,000\n<i>Some</i> text\n\n2\n00:00:03,000 --> 00:00:04,000\nMore\n"
ODP_TYPE = "application/vnd.oasis.opendocument.presentation"
ODP = {
    name: text.replace("<o:text>", "<o:presentation>").replace("</o:text>", "</o:presentation>")
    for name, text in odt_members(
        '<d:page xmlns:d="urn:oasis:names:tc:opendocument:xmlns:drawing:1.0"><d:frame><d:text-box>'
        "<t:p>Some text</t:p></d:text-box></d:frame></d:page>"
    ).items()
}


def slides_and_sheet() -> tuple[bytes, bytes]:
    """A presentation with one slide, and a workbook with one sheet."""
    import xlsxwriter
    from pptx import Presentation

    slides, sheet = io.BytesIO(), io.BytesIO()
    presentation = Presentation()
    presentation.slides.add_slide(presentation.slide_layouts[0]).shapes.title.text = "Title"
    presentation.save(slides)
    with xlsxwriter.Workbook(sheet, {"in_memory": True}) as book:
        book.add_worksheet("One").write_row(0, 0, ["a", 1, None, True])
    return slides.getvalue(), sheet.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    """The members of a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archived:
        return {name: archived.read(name) for name in archived.namelist()}


NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "text"], "attachments": {"a.png": {}}},
            {
                "cell_type": "code",
                "source": "df",
                "outputs": [
                    {"output_type": "stream", "text": "5%\r6%\r7%\r8%\n\u001b[1mx"},
                    {"output_type": "display_data", "data": {"text/html": "<table><tr><td>a<td>b</table>"}},
                    {"output_type": "pyout", "png": "QUJD", "text": ["<object>"]},
                ],
            },
        ],
        "nbformat": 4,
    }
).encode()
SAMPLES = {
    Format.PDF: pdf(["A line of text", "", "Another one"]),
    Format.EPUB: epub(CHAPTERS),
    Format.DOCX: docx(PARAGRAPHS),
    Format.ODT: odt(CONTENT),
    Format.RTF: RTF,
    Format.HTML: PAGE,
    Format.MAIL: MAIL,
    Format.MBOX: b"From a@example.org Mon Jun  1 10:00:00 2026\n" + MAIL.replace(b"\r\n", b"\n") + b"\n",
    Format.MSG: outlook("Subject", "Text.", "<p>Page</p>", [("a.txt", b"attached"), ("b.pdf", pdf(["x"]))]),
    Format.PPTX: slides_and_sheet()[0],
    Format.SPREADSHEET: slides_and_sheet()[1],
    Format.ODP: archive(ODP, first=ODP_TYPE),
    Format.FB2: FB2,
    Format.SUBTITLES: SUBTITLES,
    Format.NOTEBOOK: NOTEBOOK,
}
PACKED: dict[Format, tuple[Mapping[str, str | bytes], str | None]] = {
    Format.EPUB: (epub_members(CHAPTERS), "application/epub+zip"),
    Format.DOCX: (docx_members(PARAGRAPHS), None),
    Format.ODT: (odt_members(CONTENT), "application/vnd.oasis.opendocument.text"),
    Format.ODP: (ODP, ODP_TYPE),
    Format.PPTX: (members_of(SAMPLES[Format.PPTX]), None),
    Format.SPREADSHEET: (members_of(SAMPLES[Format.SPREADSHEET]), None),
}
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes flipped, pieces cut out, repeated or inserted, or the end cut off."""
    data = bytearray(content)
    for change in draw(
        st.lists(st.sampled_from(["flip", "cut", "splice", "insert", "end"]), min_size=1, max_size=4)
    ):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        end = min(len(data), start + draw(st.integers(1, 64)))
        if change == "flip":
            data[start] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[start:end]
        elif change == "splice":
            target = draw(st.integers(0, len(data)))
            data[target:target] = data[start:end] * draw(st.integers(1, 3))
        elif change == "insert":
            data[start:start] = draw(st.binary(max_size=16))
        else:
            del data[start:]
    return bytes(data)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader(silence=SECONDS, total=SECONDS) as running:
        yield running


def check(reader: Reader, kind: Format, content: bytes, path: Path) -> None:
    """A reader gives text without control characters, in parts with short labels, or a reason."""
    path.write_bytes(content)
    recognized(content[:8192], f"file.{kind}")
    begun = time.monotonic()
    trouble = None
    try:
        for found in reader.read(kind, str(path)):
            if isinstance(found, Remark):
                assert found.kind.isprintable()
                assert found.count > 0
                continue
            text, section = found
            assert not set(map(chr, range(32))) - set("\t\n") & set(text)
            assert section is None or ("\n" not in section and len(section) <= 120)
    except UnreadableError as error:
        trouble = error.trouble
    assert trouble not in (Trouble.TOO_SLOW, Trouble.NO_OFFICE)
    assert time.monotonic() - begun < SECONDS


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_samples_themselves_are_read(kind: Format, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(SAMPLES[kind])
    name = "stdin" if kind is Format.NOTEBOOK else f"file.{kind}"
    assert recognized(SAMPLES[kind], name) is kind
    parts = [part for part in reader.read(kind, str(tmp_path / "file")) if isinstance(part, Part)]
    assert any(part.text.strip() for part in parts)


@pytest.mark.parametrize("kind", SAMPLES)
@FUZZ
@given(data=st.data())
def test_mutated_files(kind: Format, reader: Reader, tmp_path: Path, data: st.DataObject) -> None:
    check(reader, kind, data.draw(mutated(SAMPLES[kind])), tmp_path / "file")


@pytest.mark.parametrize("kind", PACKED)
@FUZZ
@given(data=st.data())
def test_mutated_members_of_whole_archives(
    kind: Format, reader: Reader, tmp_path: Path, data: st.DataObject
) -> None:
    """A zip file's checksums catch changes from outside; here the XML inside changes."""
    members, first = PACKED[kind]
    name = data.draw(st.sampled_from(sorted(members)))
    member = members[name]
    content = member if isinstance(member, bytes) else member.encode()
    changed = {**members, name: data.draw(mutated(content))}
    check(reader, kind, archive(changed, first), tmp_path / "file")


@FUZZ
@given(content=mutated(gzip.compress(b"some text, and more of it\n" * 50)))
def test_mutated_gzip(content: bytes) -> None:
    trouble = None
    try:
        for block in Gzipped(Written(content), len(content)).blocks():
            assert block
    except UnreadableError as error:
        trouble = error.trouble
    assert trouble in (None, Trouble.DAMAGED, Trouble.TOO_LARGE)


@FUZZ
@given(head=st.binary(max_size=200), name=st.sampled_from(["a.pdf", "a.docx", "a.html", "a", "a.epub"]))
def test_recognition_never_fails(head: bytes, name: str) -> None:
    for start in (b"", b"PK\x03\x04", b"%PDF-", b"<!doctype html>", b"<!--"):
        assert recognized(start + head, name) in {None, *Format}
