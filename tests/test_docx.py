"""All that Word shows, and keeps beside the text, is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from document_files import RELATIONSHIPS, WORD, archive, docx_members

from adamas_cli.documents.formats.docx.numbers import formatted
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

NAMES = (
    f'xmlns:w="{WORD}" xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
    'xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"'
)
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
Read = Callable[..., list[Part | Remark]]


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as running:
        yield running


@pytest.fixture
def read(reader: Reader, tmp_path: Path) -> Read:
    def parts(body: str, **related: str) -> list[Part | Remark]:
        """Related parts by kind; what follows `_` in a name only tells them apart."""
        members: dict[str, str | bytes] = dict(docx_members([]))
        members["word/document.xml"] = f"<w:document {NAMES}><w:body>{body}</w:body></w:document>"
        relations = ""
        for name, content in related.items():
            kind = name.partition("_")[0]
            members[f"word/{name}.xml"] = (
                content if content.startswith("!") else f"<w:{kind} {NAMES}>{content}</w:{kind}>"
            )
            relations += f'<Relationship Id="{name}" Type="{OFFICE}/{kind}" Target="{name}.xml"/>'
        members["word/_rels/document.xml.rels"] = (
            f'<Relationships xmlns="{RELATIONSHIPS}">{relations}</Relationships>'
        )
        (tmp_path / "d.docx").write_bytes(archive(members))
        return list(reader.read(Format.DOCX, str(tmp_path / "d.docx")))

    return parts


@pytest.fixture
def text(read: Read) -> Callable[..., str]:
    return lambda *body, **related: "".join(
        part.text for part in read(*body, **related) if isinstance(part, Part)
    ).strip()


def p(text: str, properties: str = "") -> str:
    return f'<w:p><w:pPr>{properties}</w:pPr><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def item(text: str, number: int, level: int = 0) -> str:
    return p(text, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def level(at: int, kind: str, shown: str, start: int = 1, more: str = "") -> str:
    return (
        f'<w:lvl w:ilvl="{at}"><w:start w:val="{start}"/><w:numFmt w:val="{kind}"/>{more}'
        f'<w:lvlText w:val="{shown}"/></w:lvl>'
    )


def numbering(*levels: str, more: str = "") -> str:
    return (
        f'<w:abstractNum w:abstractNumId="0">{"".join(levels)}</w:abstractNum>'
        f'<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>{more}'
    )


def cell(*texts: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{''.join(map(p, texts))}</w:tc>"


def table(*rows: str) -> str:
    return "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>"


def equation(inner: str) -> str:
    return f"<w:p><m:oMath>{inner}</m:oMath></w:p>"


def r(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


def m(name: str, **parts: str) -> str:
    inner = "".join(f"<m:{key}>{value}</m:{key}>" for key, value in parts.items())
    return f"<m:{name}>{inner}</m:{name}>"


BOX = f"<w:txbxContent>{p('In the box.')}</w:txbxContent>"
SHAPE = (
    "<w:drawing><wp:inline><a:graphic><a:graphicData uri='http://x/wordprocessingShape'><wps:wsp><wps:txbx>"
    f"{BOX}</wps:txbx></wps:wsp></a:graphicData></a:graphic></wp:inline></w:drawing>"
)
OLD_SHAPE = f"<w:pict><v:shape><v:textbox>{BOX}</v:textbox></v:shape></w:pict>"


@pytest.mark.parametrize(
    "drawn",
    [
        SHAPE,
        OLD_SHAPE,
        f"<mc:AlternateContent><mc:Choice Requires='wps'>{SHAPE}</mc:Choice>"
        f"<mc:Fallback>{OLD_SHAPE}</mc:Fallback></mc:AlternateContent>",
        f"<mc:AlternateContent><mc:Choice Requires='wps'>{SHAPE}</mc:Choice></mc:AlternateContent>",
    ],
    ids=["new", "old", "both", "without fallback"],
)  # fmt: skip
def test_text_boxes_stand_once_behind_their_paragraph(drawn: str, text: Callable[..., str]) -> None:
    body = f"<w:p><w:r><w:t>Before.</w:t></w:r><w:r>{drawn}</w:r></w:p>{p('After.')}"
    assert text(body) == "Before.\n\nIn the box.\n\nAfter."


def test_a_text_box_in_a_cell(text: Callable[..., str]) -> None:
    inside = f"<w:tc><w:tcPr/><w:p><w:r>{SHAPE}</w:r></w:p></w:tc>"
    assert (
        text(table(cell("a") + cell("b"), cell("c") + inside))
        == "| a | b |\n| --- | --- |\n| c | In the box. |"
    )


def test_comments_stand_behind_what_they_are_about(text: Callable[..., str]) -> None:
    body = (
        '<w:p><w:commentRangeStart w:id="7"/><w:r><w:t>It costs 900.</w:t></w:r><w:commentRangeEnd w:id="7"/>'
        '<w:r><w:commentReference w:id="7"/></w:r><w:r><w:t xml:space="preserve"> Done.</w:t></w:r></w:p>'
    )
    comments = f'<w:comment w:id="7" w:author="Ada">{p("No:")}{p("950.")}</w:comment>'
    assert text(body, comments=comments) == "It costs 900. [comment by Ada: No: 950.] Done."


def test_notes_stand_where_they_are_referred_to(text: Callable[..., str]) -> None:
    body = (
        '<w:p><w:r><w:t>One</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r><w:r><w:t> two</w:t></w:r>'
        '<w:r><w:endnoteReference w:id="2"/></w:r></w:p>'
    )
    notes = f'<w:footnote w:type="separator" w:id="0">{p("no")}</w:footnote>'
    notes += f'<w:footnote w:id="2">{p("Foot.")}</w:footnote>'
    ends = f'<w:endnote w:id="2">{p("End.")}</w:endnote>'
    assert text(body, footnotes=notes, endnotes=ends) == "One [footnote: Foot.] two [endnote: End.]"


def test_headers_and_footers_stand_once(text: Callable[..., str]) -> None:
    related = {
        "header_1": p("ACME Ltd"),
        "header_2": p("ACME Ltd"),
        "header_3": p("Draft"),
        "footer_1": p("Page 3 of 9"),
        "footer_2": p("Confidential"),
    }
    expected = "[header: ACME Ltd]\n\n[header: Draft]\n\nText.\n\n[footer: Confidential]"
    assert text(f"{p('Text.')}<w:sectPr/>", **related) == expected


def test_numbers_of_headings_and_items_go_on(text: Callable[..., str]) -> None:
    levels = [level(0, "decimal", "%1"), level(1, "decimal", "%1.%2"), level(2, "lowerLetter", "(%3)")]
    places = [0, 1, 1, 2, 2, 0, 1, 2]
    body = "".join(item(f"x{n}", 1, at) + (p("Text.") if n == 3 else "") for n, at in enumerate(places))
    lines = [line for line in text(body, numbering=numbering(*levels)).split("\n\n") if line != "Text."]
    labels = ["1", "1.1", "1.2", "(a)", "(b)", "2", "2.1", "(a)"]
    assert lines == [f"{label} x{n}" for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("made", "labels"),
    [
        (numbering(level(0, "lowerLetter", "(%1)", start=5)), ["(e)", "(f)"]),
        (numbering(level(0, "upperRoman", "Article %1.", start=4)), ["Article IV.", "Article V."]),
        (numbering(level(0, "decimalZero", "%1")), ["01", "02"]),
        (numbering(level(0, "lowerLetter", "%1)", start=26)), ["z)", "aa)"]),
        (
            numbering(level(0, "decimal", "%1.")).replace(
                '<w:abstractNumId w:val="0"/></w:num>',
                '<w:abstractNumId w:val="0"/><w:lvlOverride w:ilvl="0"><w:startOverride w:val="9"/>'
                "</w:lvlOverride></w:num>",
            ),
            ["9.", "10."],
        ),
        (
            '<w:abstractNum w:abstractNumId="0"><w:numStyleLink w:val="S"/></w:abstractNum>'
            '<w:abstractNum w:abstractNumId="1"><w:styleLink w:val="S"/>'
            f'{level(0, "decimal", "§ %1")}</w:abstractNum>'
            '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>',
            ["§ 1", "§ 2"],
        ),
    ],
    ids=["start", "roman", "zero", "after z", "restarted", "by style"],
)  # fmt: skip
def test_kinds_of_numbers(made: str, labels: list[str], text: Callable[..., str]) -> None:
    found = text(item("x", 1) + item("x", 1), numbering=made)
    assert found.split("\n\n") == [f"{label} x" for label in labels]


def by_number(properties: str) -> str:
    return f"<w:pPr><w:numPr>{properties}</w:numPr></w:pPr>"


def test_numbers_by_a_style_and_one_that_builds_on_it(read: Read) -> None:
    made = numbering(
        level(0, "decimal", "%1", more='<w:pStyle w:val="Heading1"/>'),
        level(1, "decimal", "%1.%2", more='<w:pStyle w:val="Heading2"/>'),
    )
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="{name}"><w:name w:val="{shown}"/>{more}</w:style>'
        for name, shown, more in [
            ("Heading1", "heading 1", by_number('<w:numId w:val="1"/>')),
            ("Heading2", "heading 2", by_number('<w:ilvl w:val="1"/><w:numId w:val="1"/>')),
            ("Clause", "Clause", '<w:basedOn w:val="Heading2"/>'),
            ("Plain", "Plain", '<w:basedOn w:val="Heading1"/>' + by_number('<w:numId w:val="0"/>')),
        ]
    )  # fmt: skip
    body = "".join(p("x", f'<w:pStyle w:val="{s}"/>') for s in ("Heading1", "Heading2", "Clause", "Plain"))
    found = read(body, numbering=made, styles=styles)
    assert [part.section for part in found if isinstance(part, Part)][:2] == ["1 x", "1.1 x"]
    assert "".join(part.text for part in found if isinstance(part, Part)).split() == [
        "#",
        "1",
        "x",
        "##",
        "1.1",
        "x",
        "1.2",
        "x",
        "x",
    ]


def test_bullets_stay_a_list(text: Callable[..., str]) -> None:
    assert text(item("a", 1) + item("b", 1), numbering=numbering(level(0, "bullet", "•"))) == "- a\n- b"


@pytest.mark.parametrize(
    ("inner", "latex"),
    [
        (r("x=") + m("f", num=r("a"), den=r("b")), "x=\\frac{a}{b}"),
        (m("sSup", e=r("c"), sup=r("2")), "c^{2}"),
        (r("H₂O"), "H_{2}O"),
        (m("sSubSup", e=r("x"), sub=r("i"), sup=r("2")), "x_{i}^{2}"),
        (m("rad", deg=r("3"), e=r("x")), "\\sqrt[3]{x}"),
        (m("rad", radPr='<m:degHide m:val="1"/>', deg="", e=r("x")), "\\sqrt{x}"),
        (m("nary", naryPr='<m:chr m:val="∑"/>', sub=r("i=1"), sup=r("n"), e=r("i")), "\\sum_{i=1}^{n} i"),
        (m("d", e=r("a+b")), "\\left( a+b \\right)"),
        (m("d", dPr='<m:begChr m:val="{"/><m:endChr m:val=""/>', e=r("a")), "\\left\\{ a \\right."),
        (m("func", fName=r("sin"), e=r("x")), "\\sin x"),
        (m("acc", accPr='<m:chr m:val="\u20d7"/>', e=r("v")), "\\vec{v}"),
        (m("m", mr=f"<m:e>{r('1')}</m:e><m:e>{r('0')}</m:e>"), "\\begin{matrix} 1 & 0 \\end{matrix}"),
        (m("eqArr", e=r("a=b")), "\\begin{aligned} a=b \\end{aligned}"),
        (m("limLow", e=r("lim"), lim=r("n→∞")), "\\lim_{n→∞}"),
        (m("bar", barPr='<m:pos m:val="top"/>', e=r("x")), "\\overline{x}"),
        (m("unknown", e=r("kept")), "kept"),
        (r("50%"), "50\\%"),
    ],
)  # fmt: skip
def test_equations_are_latex(inner: str, latex: str, text: Callable[..., str]) -> None:
    assert text(equation(inner)) == f"${latex}$"


def test_an_equation_of_its_own(text: Callable[..., str]) -> None:
    body = f"<w:p><m:oMathPara><m:oMath>{r('E=m')}</m:oMath></m:oMathPara></w:p>"
    assert text(body) == "$$E=m$$"


def test_merged_cells_and_tables_in_cells(text: Callable[..., str]) -> None:
    down, on = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    found = text(
        table(
            cell("Fruit") + cell("Price", properties='<w:gridSpan w:val="2"/>'),
            cell("Pear", properties=down) + cell("1|2") + cell("a", "b"),
            cell("", properties=on)
            + cell("3")
            + f"<w:tc><w:tcPr/>{table(cell('i') + cell('j'))}{p('')}</w:tc>",
        )
    )
    assert [" ".join(line.split()) for line in found.split("\n")] == [
        "| Fruit | Price | |",
        "| --- | --- | --- |",
        "| Pear | 1\\|2 | a b |",
        "| Pear | 3 | i; j |",
    ]


def test_a_huge_cell_is_not_said_again(text: Callable[..., str]) -> None:
    rows = [cell("long " * 1000, properties='<w:vMerge w:val="restart"/>') + cell("x")]
    rows += [cell("", properties="<w:vMerge/>") + cell("y")] * 50
    assert text(table(*rows)).count("long") == 1000


def test_tracked_changes_are_as_they_are_now(read: Read) -> None:
    body = (
        '<w:p><w:r><w:t xml:space="preserve">The price is </w:t></w:r>'
        "<w:del><w:r><w:delText>900</w:delText></w:r></w:del><w:ins><w:r><w:t>950</w:t></w:r></w:ins>"
        "<w:moveFrom><w:r><w:t>gone</w:t></w:r></w:moveFrom>"
        "<w:moveTo><w:r><w:t> here</w:t></w:r></w:moveTo></w:p>"
    )
    first, _, left_out = read(body)
    assert first == Part("The price is 950 here")
    assert left_out == Remark("passages deleted by tracked changes", 1)


def test_pictures_and_charts_are_counted(read: Read) -> None:
    drawn = "".join(
        f"<w:r><w:drawing><wp:inline><a:graphic><a:graphicData uri='http://x/{kind}'/></a:graphic>"
        "</wp:inline></w:drawing></w:r>"
        for kind in ("picture", "picture", "chart")
    )
    found = read(f"<w:p><w:r><w:t>x</w:t></w:r>{drawn}</w:p>")
    assert found[2:] == [Remark("pictures", 2), Remark("charts", 1)]


def test_a_damaged_part_costs_itself_only(read: Read) -> None:
    assert read(p("Text."), comments="!no XML") == [
        Part("Text."),
        Part("\n"),
        Remark("damaged parts", 1),
    ]


@pytest.mark.parametrize(
    ("number", "kind", "shown"),
    [(0, "lowerLetter", "0"), (1994, "lowerRoman", "mcmxciv"), (28, "upperLetter", "BB"),
     (4000, "upperRoman", "4000"), (3, "ordinal", "3rd"), (12, "ordinal", "12th"),
     (7, "chineseCounting", "7"), (10**9, "decimal", "1000000000")],
)  # fmt: skip
def test_numbers_are_written_as_word_does(number: int, kind: str, shown: str) -> None:
    assert formatted(number, kind) == shown
