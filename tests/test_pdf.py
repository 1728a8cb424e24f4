"""PDF pages are read as they look: cells apart, columns one after another, running heads once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from document_files import drawn_pdf

from adamas_cli.documents.formats.pdf.hyphens import Vocabulary
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

HEADS = "running heads and page numbers"
LEFT = [
    "The first column begins here and goes on",
    "for several lines of running text that are",
    "about as long as the column is wide, as it",
    "is usual in papers and in many magazines.",
]
RIGHT = [
    "The second column is read after the first",
    "although each of its lines was drawn right",
    "after the line that stands to the left of",
    "it, which is what some programs really do.",
]
Read = Callable[..., list[str]]


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as running:
        yield running


@pytest.fixture
def parts(reader: Reader, tmp_path: Path) -> Callable[..., list[Part | Remark]]:
    def read(*pages: str, **more: object) -> list[Part | Remark]:
        (tmp_path / "a.pdf").write_bytes(drawn_pdf(pages, **more))  # type: ignore[arg-type]
        return list(reader.read(Format.PDF, str(tmp_path / "a.pdf")))

    return read


@pytest.fixture
def lines(parts: Callable[..., list[Part | Remark]]) -> Read:
    """The lines of all pages, without the page names."""
    return lambda *pages, **more: [
        line
        for part in parts(*pages, **more)
        if isinstance(part, Part)
        for line in part.text.strip().split("\n")[1:]
    ]


def at(x: float, y: float, text: str, size: float = 12, matrix: str = "1 0 0 1") -> str:
    return f"BT /F1 {size} Tf {matrix} {x} {y} Tm ({text}) Tj ET\n"


def grid(xs: list[int], ys: list[int], *, boxes: bool = False) -> str:
    if boxes:
        pairs = [(*x, *y) for x in pairwise(xs) for y in pairwise(ys)]
        return "".join(f"{a} {c} {b - a} {d - c} re S\n" for a, b, c, d in pairs)
    across = "".join(f"{xs[0]} {y} m {xs[-1]} {y} l S\n" for y in ys)
    return across + "".join(f"{x} {ys[0]} m {x} {ys[-1]} l S\n" for x in xs)


ROWS = [("Team", "W", "D", "L"), ("Ulm", "5", "3", "2"), ("Bonn", "4", "4", "2"), ("Kiel", "1", "2", "7")]
TABLE = ["| Team | W | D | L |", "| --- | --- | --- | --- |", "| Ulm | 5 | 3 | 2 |", "| Bonn | 4 | 4 | 2 |",
         "| Kiel | 1 | 2 | 7 |"]  # fmt: skip


def table(xs: list[int], order: str = "rows", top: int = 700) -> str:
    cells = [(x, top - 20 * n, cell) for n, row in enumerate(ROWS) for x, cell in zip(xs, row, strict=True)]
    if order == "columns":
        cells.sort()
    return "".join(at(*cell) for cell in cells)


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("xs", [[72, 172, 272, 372], [72, 130, 152, 174]], ids=["wide", "narrow"])
def test_cells_of_a_table_without_lines(xs: list[int], order: str, lines: Read) -> None:
    assert lines(at(72, 740, "League table") + table(xs, order) + at(72, 560, "Source: the council.")) == [
        "League table",
        *TABLE,
        "Source: the council.",
    ]


@pytest.mark.parametrize("boxes", [False, True], ids=["lines", "boxes"])
@pytest.mark.parametrize("xs", [[72, 172, 272, 372], [72, 105, 120, 135]], ids=["wide", "tight"])
def test_cells_of_a_table_with_lines(xs: list[int], boxes: bool, lines: Read) -> None:
    places = [x - 3 for x in xs] + [xs[-1] + 20]
    ruled = grid(places, [634, 654, 674, 694, 714], boxes=boxes)
    assert lines(ruled + table(xs)) == TABLE


def test_a_cell_of_several_lines_and_one_that_spans_two(lines: Read) -> None:
    drawn = grid([70, 150, 300, 400], [600, 640, 660, 680]) + at(72, 665, "Both") + at(302, 665, "Sum")
    drawn += at(72, 645, "Pear") + at(152, 645, "none") + at(302, 645, "1|2")
    drawn += at(72, 625, "Fig") + at(152, 625, "a text that") + at(152, 608, "goes on") + at(302, 625, "3")
    assert lines(drawn) == [
        "| Both |  | Sum |",
        "| --- | --- | --- |",
        "| Pear | none | 1\\|2 |",
        "| Fig | a text that goes on | 3 |",
    ]


def test_one_row_of_cells_stays_a_line(lines: Read) -> None:
    assert lines(at(72, 700, "Invoice") + at(400, 700, "4711") + at(72, 600, "Text.")) == [
        "Invoice   4711",
        "Text.",
    ]


def test_labels_of_lists_are_no_cells(lines: Read) -> None:
    labels = ["1.", "2.", "3.", "(a)"]
    places = [(label, 700 - 20 * n) for n, label in enumerate(labels)]
    items = "".join(at(72, y, label) + at(100, y, "an item") for label, y in places)
    assert lines(items) == ["1. an item", "2. an item", "3. an item", "(a) an item"]


@pytest.mark.parametrize("shift", [0, 5], ids=["level", "staggered"])
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_columns_follow_each_other(shift: int, order: str, lines: Read) -> None:
    title = at(72, 760, "A title that stands above both of the columns of text", 16)
    cells = [(72, 700 - 16 * n, line, 10) for n, line in enumerate(LEFT)]
    other = [(320, 700 - shift - 16 * n, line, 10) for n, line in enumerate(RIGHT)]
    drawn = (
        [cell for pair in zip(cells, other, strict=True) for cell in pair]
        if order == "rows"
        else cells + other
    )
    found = lines(title + "".join(at(*cell) for cell in drawn))
    assert found == ["A title that stands above both of the columns of text", *LEFT, *RIGHT]


def test_a_tall_table_of_long_cells_is_no_columns(lines: Read) -> None:
    texts = "what the call does, in words {n}", "call({n})", "the other, in words {n}", "{n}"
    rows = [[text.format(n=n) for text in texts] for n in range(24)]
    places = (40, 230, 330, 520)
    drawn = "".join(
        at(x, 740 - 14 * n, cell, 8)
        for n, row in enumerate(rows)
        for x, cell in zip(places, row, strict=True)
    )
    found = [line for line in lines(drawn) if "---" not in line]
    assert found == [f"| {' | '.join(row)} |" for row in rows]


def test_three_columns(lines: Read) -> None:
    texts = [[f"column {c} line {n} of text" for n in range(5)] for c in range(3)]
    drawn = "".join(at(50 + 180 * c, 700 - 16 * n, texts[c][n], 10) for n in range(5) for c in range(3))
    assert lines(drawn) == [line for column in texts for line in column]


@pytest.mark.parametrize(
    ("matrix", "page", "step"),
    [("0 1 -1 0", "/Rotate 90", (18, 0)), ("0 -1 1 0", "/Rotate 270", (-18, 0)), ("-1 0 0 -1", "", (0, 18))],
    ids=["left", "right", "upside down"],
)
def test_turned_pages(matrix: str, page: str, step: tuple[int, int], lines: Read) -> None:
    texts = [f"Row {n} with a value of 1{n}" for n in range(4)]
    drawn = "".join(
        at(300 + n * step[0], 400 + n * step[1], text, matrix=matrix) for n, text in enumerate(texts)
    )
    assert lines(drawn, page=page) == texts


def test_a_turned_margin_comes_last(lines: Read) -> None:
    texts = [f"Line {n} of the page itself." for n in range(4)]
    margin = at(30, 300, "Sideways 2020", matrix="0 1 -1 0")
    assert lines(margin + "".join(at(72, 700 - 16 * n, t) for n, t in enumerate(texts))) == [
        *texts,
        "Sideways 2020",
    ]


def test_leaders_of_a_table_of_contents(lines: Read) -> None:
    drawn = at(72, 700, "1") + at(100, 700, f"Rabbits {'. ' * 30}") + at(420, 700, "13")
    drawn += at(72, 680, f"Pools {'.' * 30}19")
    assert lines(drawn) == ["1 Rabbits … 13", "Pools … 19"]


def page(number: int, head: str, foot: str) -> str:
    body = "".join(at(72, 690 - 16 * n, f"Line {n} of text {number * 10 + n}.") for n in range(3))
    return at(72, 770, head) + body + at(300, 30, foot)


def test_running_heads_stand_once_and_page_numbers_not_at_all(
    parts: Callable[..., list[Part | Remark]],
) -> None:
    pages = [page(n, "Annual Report" if n % 2 else "The Money", str(n)) for n in range(7, 15)]
    *found, left_out = parts(*pages)
    text = "".join(part.text for part in found if isinstance(part, Part))
    assert (text.count("Annual Report"), text.count("The Money")) == (1, 1)
    assert "\n7\n" not in text
    assert text.count("Line") == 24
    assert left_out == Remark(HEADS, 8 + 6)


@pytest.mark.parametrize(
    "foot", ["Page {n} of 9", "{n} / 9", "- {n} -", "Seite {n}"], ids=["of", "slash", "dashes", "German"]
)
def test_page_numbers_in_words(foot: str, lines: Read) -> None:
    pages = [page(n, f"Title {n * n}", foot.format(n=n)) for n in range(1, 5)]
    assert [line for line in lines(*pages) if not line.startswith(("Title", "Line"))] == []


@pytest.mark.parametrize(
    "head",
    ["ACME Report | {n}", "{n} \\227 ACME Report", "Page {n} of 9 - ACME Report", "ACME Report, p. {n}"],
)
def test_heads_with_page_numbers_in_them(head: str, lines: Read) -> None:
    pages = [page(n, head.format(n=n), "") for n in range(1, 6)]
    found = [line for line in lines(*pages) if not line.startswith("Line")]
    assert found == [head.format(n=1).replace("\\227", "\u2014")]


def test_what_only_looks_like_a_head_is_kept(lines: Read) -> None:
    titles = [f"Invoice {4711 + n}" for n in range(5)]
    totals = ["12", "99", "7", "1", "30"]
    found = lines(
        *[page(n, title, total) for n, (title, total) in enumerate(zip(titles, totals, strict=True))]
    )
    assert [line for line in found if not line.startswith("Line")] == [
        word for pair in zip(titles, totals, strict=True) for word in pair
    ]
    assert lines(*["BT /F1 12 Tf 72 770 Td (alone) Tj ET"] * 4) == ["alone"] * 4, "no page is emptied"


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("the infor-", "mation is", "the information is"),
        ("a zorb-", "ling and", "a zorbling and"),
        ("a long-", "term plan", "a long-term plan"),
        ("the state-of-the-", "art way", "the state-of-the-art way"),
        ("self-govern-", "ment is", "self-government is"),
        ("pages 10-", "20 of it", "pages 10-20 of it"),
        ("on GPT-", "4 and on", "on GPT-4 and on"),
        ("of COVID-", "19 in it", "of COVID-19 in it"),
        ("Mr. Smith-", "Jones is", "Mr. Smith-Jones is"),
        ("with --dry-", "run set", "with --dry-run set"),
        ("see example.org/foo-", "bar/x.html", "see example.org/foo-bar/x.html"),
        ("to bob@infor-", "mation.org now", "to bob@infor-mation.org now"),
        ("an e-", "mail from", "an e-mail from"),
        ("some_infor-", "mation here", "some_infor-mation here"),
        ("the infor-", "mation-rich text", "the infor-mation-rich text"),
        ("soft hy\\255", "phen in it", "soft hyphen in it"),
        ("a dash -", "and more", "a dash -\nand more"),
        ("and CO-", "OPERATION", "and CO-OPERATION"),
    ],
)
def test_hyphens_at_line_ends(first: str, second: str, joined: str, lines: Read) -> None:
    seen = at(72, 600, "It is the long-term view of zorbling people that he has in the end.")
    drawn = at(72, 700, first) + at(72, 684, second) + seen
    assert "\n".join(lines(drawn)[:-1]) == joined


def test_a_table_is_no_end_of_a_broken_word(lines: Read) -> None:
    assert lines(at(72, 740, "before the infor-") + table([72, 172, 272, 372])) == [
        "before the infor-",
        *TABLE,
    ]


def test_words_are_judged_by_the_whole_document(lines: Read) -> None:
    broken = at(72, 700, "a flom-") + at(72, 684, "bular thing")
    assert lines(broken, at(72, 700, "nothing")) == ["a flom-bular thing", "nothing"]
    assert lines(broken, at(72, 700, "flombular")) == ["a flombular thing", "flombular"]


def test_a_dictionary_of_the_documents_language() -> None:
    words = Vocabulary()
    words.add(["Die Kinder und der Hund sind nicht mit dem Ball auf das Feld zu den anderen"])
    assert words.text(["eine Über-", "raschung und"]) == "eine Überraschung und"


def widget(kind: str, name: str, more: str, rect: str = "150 690 350 710") -> str:
    return f"<< /Type /Annot /Subtype /Widget /FT /{kind} /T ({name}) /Rect [{rect}] /F 4 {more} >>"


def test_values_of_form_fields(lines: Read) -> None:
    fields = [
        widget("Tx", "surname", "/V (Lovelace)"),
        widget("Tx", "empty", "", "150 670 350 690"),
        widget("Tx", "secret", "/V (4711) /Ff 8192", "150 670 350 690"),
        widget("Ch", "city", "/V (Ulm) /Opt [(Bonn) (Ulm)] /Ff 131072", "150 650 350 670"),
        widget("Tx", "hidden", "/V (no)").replace("/F 4", "/F 2"),
    ]
    labels = at(72, 695, "Name:") + at(72, 655, "City:")
    numbers = " ".join(f"{6 + n} 0 R" for n in range(len(fields)))
    found = lines(
        labels, page=f"/Annots [{numbers}]", catalog=f"/AcroForm << /Fields [{numbers}] >>", more=fields
    )
    assert found == ["Name: [surname: Lovelace]", "City: [city: Ulm]"]


@pytest.mark.parametrize(("state", "shown"), [("Yes", "yes"), ("Off", "no")])
def test_boxes_to_tick(state: str, shown: str, lines: Read) -> None:
    form = "<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 0 >>\nstream\n\nendstream"
    box = widget("Btn", "agree", f"/V /{state} /AS /{state} /AP << /N << /Yes 7 0 R /Off 7 0 R >> >>")
    found = lines(
        at(72, 695, "I agree:"),
        page="/Annots [6 0 R]",
        catalog="/AcroForm << /Fields [6 0 R] >>",
        more=[box, form],
    )
    assert found == [f"I agree: [agree: {shown}]"]


def test_text_boxes_and_notes(lines: Read) -> None:
    notes = [
        "<< /Type /Annot /Subtype /FreeText /Contents (In a box.) /Rect [72 660 300 690] /F 4 >>",
        "<< /Type /Annot /Subtype /Text /T (Ada) /Contents (To check.) /Rect [72 700 90 720] /F 4 >>",
        "<< /Type /Annot /Subtype /Highlight /Contents (Why?) /Rect [72 700 90 720] /F 4 >>",
        "<< /Type /Annot /Subtype /Link /Contents (no) /Rect [72 700 90 720] /F 4 >>",
    ]
    numbers = " ".join(f"{6 + n} 0 R" for n in range(len(notes)))
    drawn = at(72, 700, "Above.") + at(72, 600, "Below.")
    assert lines(drawn, page=f"/Annots [{numbers}]", more=notes) == [
        "Above.", "In a box.", "Below.", "[note by Ada: To check.]", "[note: Why?]",
    ]  # fmt: skip


def test_pages_are_called_by_labels_and_outline(parts: Callable[..., list[Part | Remark]]) -> None:
    outline = [
        "<< /Type /Outlines /First 11 0 R /Last 12 0 R /Count 2 >>",
        "<< /Title (Start) /Parent 10 0 R /Next 12 0 R /Dest [6 0 R /Fit] >>",
        "<< /Title (End) /Parent 10 0 R /Prev 11 0 R /Dest [8 0 R /Fit] >>",
    ]
    labels = "/PageLabels << /Nums [0 << /S /r >> 1 << /S /D >>] >> /Outlines 10 0 R"
    found = parts(*(at(72, 700, f"text {n}") for n in range(3)), catalog=labels, more=outline)
    assert [part.section for part in found if isinstance(part, Part)] == [
        "page 1 (i)", "page 2 (1): Start", "page 3 (2): End",
    ]  # fmt: skip
    assert found[1] == Part("[page 2 (1): Start]\ntext 1\n\n", "page 2 (1): Start")


def test_text_from_right_to_left_keeps_its_order(reader: Reader, tmp_path: Path) -> None:
    """A font whose `a` to `z` are Hebrew letters, drawn as printers do: last letter first."""
    cmap = "1 begincodespacerange <00> <ff> endcodespacerange 1 beginbfrange <61> <7a> <05d0> endbfrange"
    stream = f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream"
    drawn = "".join(at(300, 700 - 16 * n, text) for n, text in enumerate(["fed cba", "lkj ihg", "rqp onm"]))
    content = drawn_pdf([drawn], more=[stream])
    encoding = b"/Encoding /WinAnsiEncoding"
    (tmp_path / "a.pdf").write_bytes(content.replace(encoding, b"/ToUnicode 6 0 R".ljust(len(encoding))))
    (part,) = reader.read(Format.PDF, str(tmp_path / "a.pdf"))
    assert isinstance(part, Part)
    words = ["abc def", "ghi jkl", "mno pqr"]
    hebrew = ["".join(chr(0x5D0 + ord(c) - 97) if c != " " else c for c in line) for line in words]
    assert part.text.strip().split("\n")[1:] == hebrew
