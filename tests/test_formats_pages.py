"""HTML pages become the text that a browser shows, in time linear in their length."""

from __future__ import annotations

import gc
import io
import time
from pathlib import Path

import pytest

from adamas_cli.documents import Collection, Selection, collect
from adamas_cli.documents.formats.markup import markdown
from adamas_cli.documents.formats.pages import Page, lowered, raised
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.progress import Silent


def read(path: Path | str, stdin: bytes = b"", **selection: object) -> Collection:
    chosen = Selection(**{"tree": False} | selection)  # type: ignore[arg-type]
    return collect([str(path)], chosen, stdin=io.BytesIO(stdin), progress=Silent(), keep_converted=False)


def text_of(tmp_path: Path, page: str | bytes, name: str = "page.html") -> str:
    (tmp_path / name).write_bytes(page if isinstance(page, bytes) else page.encode())
    return "".join(read(tmp_path / name).documents[0].pieces())


@pytest.mark.parametrize(
    ("html", "want"),
    [
        ("<ul><li>a<li>b<li>c</ul>", "- a\n- b\n- c"),
        ("<ol><li>a<ul><li>b<li>c</ul><li>d</ol>", "1. a\n   - b\n   - c\n2. d"),
        ("<p>one<p>two<div>three</div>four", "one\n\ntwo\n\nthree\n\nfour"),
        ("<head><title>no</title><body><p>a", "a"),
        ("<title>no</title><meta charset=utf-8><p>a", "a"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<table><thead><tr><th>a<th>b<tbody><tr><td>1<td>2", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<p>a <b>b <i>c</b> d</i>", "a **b *c*** *d*"),
        ("<p>&lt;b&gt; &copy 2020 &eacute;&#8364;&nbsp;x", "<b> © 2020 é€ x"),
        ("<select><option>one<option>two</select>", "one two"),
    ],
)
def test_omitted_tags_end_where_browsers_end_them(html: str, want: str) -> None:
    assert markdown(html) == want


def test_a_table_without_end_tags_stays_as_small_as_it_is(tmp_path: Path) -> None:
    rows = "".join(f"<tr><td>Item {n}<td>{n}.50\n" for n in range(200))
    text = text_of(tmp_path, f"<html><title>T</title><body><table>\n<tr><th>Name<th>Price\n{rows}")
    assert text.startswith("title: T\n\n| Name | Price |\n| --- | --- |\n| Item 0 | 0.50 |\n| Item 1 |")
    assert text.endswith("| Item 199 | 199.50 |\n")
    assert len(text) < 6000


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ("<tr><th>a<th>b<tr><td rowspan=2>x<td>1<tr><td>2", ["a|b", "x|1", "x|2"]),
        ("<tr><th>a<th>b<tr><td>1<td rowspan=3>x<tr><td>2<tr><td>3", ["a|b", "1|x", "2|x", "3|x"]),
        ("<tr><th colspan=2>2020<th>y<tr><td>1<td>2<td>3", ["2020|2020|y", "1|2|3"]),
        ("<tr><th>a<th>b<tr><td colspan=2>Section<tr><td>1<td>2", ["a|b", "Section|", "1|2"]),
        ("<tr><th>a<th>b<th>c<tr><td rowspan=2 colspan=2>x<td>1<tr><td>2", ["a|b|c", "x|x|1", "x|x|2"]),
        ("<tr><th>a<th>b<tr><td rowspan=0>x<td colspan=no>y", ["a|b", "x|y"]),
    ],
)
def test_cells_that_span_rows_and_columns_are_in_each(rows: str, want: list[str]) -> None:
    lines = markdown(f"<table>{rows}</table>").splitlines()
    del lines[1]
    assert ["|".join(cell.strip() for cell in line.strip("|").split("|")) for line in lines] == want


def test_a_bar_in_a_cell_is_escaped() -> None:
    cells = "<tr><th>a<th>b<tr><td><code>x | y</code><td>a|b"
    assert "| `x \\| y` | a\\|b |" in markdown(f"<table>{cells}</table>")


def test_tables_that_only_arrange_a_page_are_unfolded() -> None:
    inner = "<table><tr><td>1<td>2<tr><td>3<td>4</table>"
    page = f"<table><tr><td>left<td><h2>Title</h2><p>text</p>{inner}</table>"
    assert markdown(page) == "left\n\n## Title\n\ntext\n\n| 1 | 2 |\n| --- | --- |\n| 3 | 4 |"


def test_a_table_in_a_cell_of_a_table_is_a_line_of_it() -> None:
    inner = "<table><tr><td>x<td>y<tr><td>z</table>"
    page = f"<table><tr><td>Item<td>Price of it<tr><td>{inner}<td>one long price<tr><td>Pear<td>2.40</table>"
    assert markdown(page).splitlines()[2] == "| x, y; z | one long price |"


@pytest.mark.parametrize(
    ("html", "want"),
    [
        ("E = mc<sup>2</sup>", "E = mc²"),
        ("H<sub>2</sub>O, x<sub>ij</sub>", "H₂O, x_(ij)"),
        ("10<sup>-3</sup> and 10<sup>&minus;3</sup>", "10⁻³ and 10⁻³"),
        ("2<sup>a+b</sup>", "2^(a+b)"),
        ("the 1<sup>st</sup>", "the 1st"),
        ("fact<sup><a href='#n1'>[1]</a></sup>", "fact[1]"),
        ("<q>yes</q>", "“yes”"),
        (
            "<math><mi>x</mi><annotation encoding='application/x-tex'>x^2</annotation></math>",
            "$x^2$",
        ),
    ],
)
def test_what_only_type_shows_is_written(html: str, want: str) -> None:
    assert markdown(f"<p>{html}</p>") == want


def test_raised_and_lowered_text() -> None:
    assert (raised("q"), lowered("max"), raised(" "), lowered("0")) == ("^q", "ₘₐₓ", " ", "₀")


HIDDEN = [
    "<p style='display:none'>secret</p>",
    "<p style='color:red; DISPLAY : none !important'>secret</p>",
    "<p style='visibility:hidden'>secret</p>",
    "<p hidden>secret</p>",
    "<div hidden><p>secret <b hidden>twice</b></p></div>",
    "<span aria-hidden='true'>secret</span>",
]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_text_is_left_out_and_counted(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "p.html").write_text(f"<!doctype html><body><p>Visible.</p>{hidden}")
    found = read(tmp_path / "p.html")
    assert "".join(found.documents[0].pieces()) == "Visible.\n"
    assert found.note_lines() == [f"{tmp_path}/p.html: left out: hidden elements (1)"]


@pytest.mark.parametrize(
    "unread",
    [
        "<script>secret()</script>",
        "<style>.secret{}</style>",
        "<noscript>secret</noscript>",
        "<template><p>secret</p></template>",
        "<!-- secret -->",
        "<iframe>secret</iframe>",
        "<dialog>secret</dialog>",
        "<input type=hidden value=secret>",
    ],
)
def test_what_is_no_text_is_not_read(unread: str) -> None:
    assert markdown(f"<p>Visible.</p>{unread}") == "Visible."


@pytest.mark.parametrize(
    "shown",
    [
        "<p style='display:block'>shown</p>",
        "<details><summary>s</summary>shown</details>",
        "<style>@media print{p{display:none}}</style><p>shown</p>",
        "<dialog open>shown</dialog>",
        "<textarea>shown</textarea>",
        "<input value=shown>",
        "<img alt=shown src=x.png>",
    ],
)
def test_what_a_browser_shows_is_read(shown: str) -> None:
    assert "shown" in markdown(f"<p>Visible.</p>{shown}")


def test_navigation_is_left_out_and_counted_unless_it_is_all(tmp_path: Path) -> None:
    menu = "<nav><ul><li><a href=/a>Products</a></ul></nav><div role=navigation>Home</div>"
    (tmp_path / "p.html").write_text(f"<!doctype html>{menu}<h1>Report</h1><p>Ten pages of it.</p>")
    found = read(tmp_path / "p.html")
    assert "".join(found.documents[0].pieces()) == "# Report\n\nTen pages of it.\n"
    assert found.note_lines() == [f"{tmp_path}/p.html: left out: navigation blocks (2)"]
    assert markdown("<nav><ol><li>Chapter I</ol></nav>") == "1. Chapter I"


def test_title_and_description_are_kept_once(tmp_path: Path) -> None:
    head = "<title>Prices &amp; terms</title><meta name='description' content='What it costs.'>"
    want = "title: Prices & terms\ndescription: What it costs.\n\nTen.\n"
    assert text_of(tmp_path, f"<!doctype html><html><head>{head}</head><body>Ten.</body></html>") == want
    assert text_of(tmp_path, "<html><title>A</title><h1>A</h1>x") == "# A\n\nx\n"
    social = "<meta property='og:description' content='Short.'>"
    assert text_of(tmp_path, f"<html><head>{social}<body>Long.") == "description: Short.\n\nLong.\n"


def test_xhtml_is_read_by_its_own_syntax() -> None:
    page = (
        '<?xml version="1.0" encoding="utf-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><head><title/>'
        '<script src="x.js"/></head><body><p><i/>Hello <a id="x"/>there<br/>you</p><![CDATA[1 < 2]]>'
    )
    assert markdown(page) == "Hello there\nyou\n\n1 < 2"
    assert markdown(page.encode()) == markdown(page)


@pytest.mark.parametrize(
    "declared",
    [
        '<!doctype html><html><head><meta charset="iso-8859-2"></head><body><p>{}</p>',
        '<!doctype html><html><META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=ISO-8859-2"><p>{}',
        '<?xml version="1.0" encoding="ISO-8859-2"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>{}</p>',
    ],
)
def test_pages_are_in_the_encoding_that_they_declare(tmp_path: Path, declared: str) -> None:
    (tmp_path / "p.html").write_bytes(declared.format("źdźbło").encode("iso8859-2"))
    found = read(tmp_path / "p.html")
    assert "".join(found.documents[0].pieces()) == "źdźbło\n"
    assert found.note_lines() == []


def test_pages_in_utf_16_and_in_a_named_encoding(tmp_path: Path) -> None:
    page = "<!doctype html><html><body><p>źdźbło</p></body></html>"
    assert text_of(tmp_path, page.encode("utf-16")) == "źdźbło\n"
    (tmp_path / "q.html").write_bytes(page.encode("cp852"))
    assert "".join(read(tmp_path / "q.html", encoding="cp852").documents[0].pieces()) == "źdźbło\n"


PAGE = b"<!DOCTYPE html>\n<html><body><p>Text.</p></body></html>"


@pytest.mark.parametrize("name", ["page", "page.html", "page.htm", "PAGE.HTML", "page.1", "index.html.orig"])
def test_a_page_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    assert text_of(tmp_path, PAGE, name) == "Text.\n"
    assert "".join(read("-", stdin=PAGE).documents[0].pieces()) == "Text.\n"


@pytest.mark.parametrize("name", ["page.php", "page.md", "page.txt", "page.j2", "page.jsx"])
def test_source_code_that_begins_like_a_page_stays_it(name: str) -> None:
    assert recognized(PAGE, name) is None


@pytest.mark.parametrize(
    "inside",
    [
        "<p>Write <code>${{ secrets.KEY }}</code>.</p>",
        "<style>@media print{#nav{display:none}}</style>",
        "<style>a{{b}}</style>",
        "<script>x = `${y}`; t = '<%= z %>'; {{ angular }}</script>",
        "<pre>{% block x %}</pre>",
        "<pre><code>&lt;%= x %&gt; {{ y }}</code></pre>",
        "<textarea>{{ y }}</textarea><kbd>${HOME}</kbd>",
        "<!-- {{ built }} <% by %> -->",
        "<script>unfinished {{ " + "x" * 9000,
    ],
)
def test_marks_of_templates_that_are_examples_leave_a_page_a_page(inside: str) -> None:
    head = f"<!doctype html><html><body>{inside}<p>text".encode()[:8192]
    assert recognized(head, "a.html") is Format.HTML


@pytest.mark.parametrize(
    "mark", ["{% block x %}", "{{ title }}", "<?php echo 1 ?>", "<%= x %>", "${title}", "{# note #}"]
)
def test_templates_are_source_code(mark: str) -> None:
    page = f"<!doctype html><html><head><title>{mark}</title></head><body><script>x</script>".encode()
    assert recognized(page, "a.html") is None


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        ("<ul>", "<li>item "),
        ("<p>", "a <b>bold</b> word "),
        ("<table>", "<tr><td>a<td>b"),
        ("<p>", "<p>para "),
        ("<pre>", "<span>x</span>\n"),
        ("<p>x", "<i hidden>x</i>"),
        ("<table>", "<tr><td rowspan=9000>a<td>b"),
        ("<dl>", "<dt>a<dd>b"),
        ("<p>", "<sup>2</sup><img alt=x>"),
        ("", "<a name=x>anchor<p>"),
        ("", "<font>soup<p>"),
    ],
)
@pytest.mark.timeout(60)
def test_time_grows_with_length(start: str, unit: str) -> None:
    def seconds(count: int) -> float:
        page = start + unit * count
        gc.disable()  # it would visit everything that earlier tests left
        try:
            begun = time.process_time()
            assert len(markdown(page)) > 0
            return time.process_time() - begun
        finally:
            gc.enable()

    seconds(100)
    assert seconds(10_000) < 50 * max(seconds(1_000), 0.01)  # quadratic time would be 100 times


@pytest.mark.parametrize("tag", ["div", "blockquote", "table><tr><td", "ul><li", "section"])
@pytest.mark.timeout(20)
def test_deep_nesting_is_refused_in_time(tag: str) -> None:
    for depth in (1500, 100_000):
        with pytest.raises(RecursionError):
            markdown(f"<{tag}>" * depth + "x")


@pytest.mark.parametrize(
    "rows", ["<tr><td colspan=1000 rowspan=65534>x<td>y" * 100, "<td>wide" * 1000 + "<tr><td>x<td>y" * 500]
)
def test_a_table_cannot_ask_for_a_million_cells(rows: str) -> None:
    text = markdown(f"<table><tr><th>a{rows}</table>")
    assert len(text) < 2 * len(rows)
    assert text.count("x") == rows.count("x")


def test_pictures_are_counted_by_kind() -> None:
    page = Page("<img src=a><img alt=b src=b><svg><text>drawn</text></svg><svg><path/></svg>")
    assert +page.left_out == {"pictures without a description": 1, "drawings": 1}


@pytest.mark.parametrize("unit", ["b ", 'a="b" ', "<a b='", '<a b="', "<?", "<a "])
@pytest.mark.timeout(30)
def test_hostile_xhtml_takes_no_longer_than_its_length(unit: str) -> None:
    start = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><p>x</p><p '
    assert markdown(start + unit * 50_000 + "/>").startswith("x")
