"""EPUB books with flaws are read as far as possible, and split by their tables of contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from document_files import CONTAINER, archive, epub_members

from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

BOOK = [(f"Chapter {n}", f"<h1>Chapter {n}</h1><p>Code {n}{n}{n}.</p>") for n in (1, 2, 3)]
NAMES = ["OEBPS/text/z 0.xhtml", "OEBPS/text/y 1.xhtml", "OEBPS/text/x 2.xhtml"]
ALL = [Part(f"[Chapter {n}]\n# Chapter {n}\n\nCode {n}{n}{n}.\n\n", f"Chapter {n}") for n in (1, 2, 3)]
MISSING = "chapters that are missing from the file"
Members = dict[str, str | bytes]


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as running:
        yield running


@pytest.fixture
def read(reader: Reader, tmp_path: Path) -> Callable[[Members], list[Part | Remark]]:
    def parts(members: Members) -> list[Part | Remark]:
        (tmp_path / "b.epub").write_bytes(archive(members, first="application/epub+zip"))
        return list(reader.read(Format.EPUB, str(tmp_path / "b.epub")))

    return parts


def book() -> Members:
    return dict(epub_members(BOOK))


def one_file(body: str, points: str) -> Members:
    members = dict(epub_members([("", body)]))
    members["OEBPS/toc.ncx"] = f"<ncx><navMap>{points}</navMap></ncx>"
    return members


def point(anchor: str, title: str, inner: str = "") -> str:
    label = f"<navLabel><text>{title}</text></navLabel>"
    return f'<navPoint>{label}<content src="text/z%200.xhtml{anchor}"/>{inner}</navPoint>'


def changed_opf(old: str, new: str) -> Members:
    return changed("OEBPS/book.opf", (old, new))


def changed(name: str, *change: tuple[str, str]) -> Members:
    members = book()
    for old, new in change:
        content = members[name]
        assert isinstance(content, str)
        assert old in content
        members[name] = content.replace(old, new)
    return members


@pytest.mark.parametrize(
    "members",
    [
        pytest.param(book(), id="whole"),
        pytest.param({k: v for k, v in book().items() if "ncx" not in k}, id="without NCX"),
        pytest.param(changed("OEBPS/toc.ncx", ("<text>", "<text>&nbsp;")), id="entity"),
        pytest.param(changed("OEBPS/toc.ncx", ("</navMap>", "")), id="no end tag"),
        pytest.param(changed_opf("<package", "\n<?xml version='1.0'?><package"), id="blank line"),
        pytest.param(changed_opf("<manifest>", "<manifest><x y='A & B &nbsp;'/>"), id="bare &"),
        pytest.param(changed_opf("text/y", "Text/Y"), id="another case"),
        pytest.param(changed_opf("text/x%20", "text\\x%20"), id="backslash"),
        pytest.param(changed("META-INF/container.xml", ("OEBPS/book", "oebps/BOOK")), id="package's case"),
        pytest.param({k: v for k, v in book().items() if "container" not in k}, id="no container"),
        pytest.param({**book(), "META-INF/container.xml": CONTAINER.encode("utf-16")}, id="UTF-16"),
        pytest.param(changed(NAMES[0], ("<!DOCTYPE html>", "\n<?xml version='1.0'?><?x y?>")),
                     id="XML declaration in a chapter"),
        pytest.param(changed_opf('media-type="application/xhtml+xml"', ""), id="no types"),
    ],
)  # fmt: skip
def test_flaws_cost_nothing(members: Members, read: Callable[[Members], list[Part]]) -> None:
    assert read(members) == ALL


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({name: content for name, content in book().items() if name != NAMES[1]}, MISSING),
        (changed("OEBPS/book.opf", ('<itemref idref="c1"', '<itemref idref="no"')), MISSING),
        (changed(NAMES[1], ("<p>", "<div>" * 100_000)), "chapters that are nested too deeply"),
        (
            changed(
                "OEBPS/book.opf", ('y%201.xhtml" media-type="application/xhtml+xml', 'y.png" media-type="a/b')
            ),
            "pages that are neither text nor drawings",
        ),
    ],
    ids=["file", "item", "deep", "picture"],
)
def test_what_is_missing_is_counted_and_the_rest_read(
    members: Members, kind: str, read: Callable[[Members], list[Part | Remark]]
) -> None:
    assert read(members) == [ALL[0], ALL[2], Remark(kind, 1)]


def test_a_damaged_chapter_is_counted(reader: Reader, tmp_path: Path) -> None:
    content = archive(book(), first="application/epub+zip")
    broken = content.replace(b"Code", b"C0de")
    assert broken == content, "it is packed"
    start = content.index(NAMES[1].encode()) + len(NAMES[1])
    (tmp_path / "b.epub").write_bytes(content[: start + 8] + b"\xff\xff\xff" + content[start + 11 :])
    found = list(reader.read(Format.EPUB, str(tmp_path / "b.epub")))
    assert found == [ALL[0], ALL[2], Remark("damaged chapters", 1)]


def test_a_book_without_any_chapter_left_is_damaged(read: Callable[[Members], list[Part]]) -> None:
    members = {name: content for name, content in book().items() if "xhtml" not in name}
    with pytest.raises(UnreadableError) as caught:
        read(members)
    assert caught.value.trouble is Trouble.DAMAGED


STORIES = "".join(f"<h2 id='s{n}'>Story {n}</h2><p>Code {n}.</p>" for n in (1, 2, 3))


@pytest.mark.parametrize(
    "body",
    [
        STORIES,
        STORIES.replace("<h2 id='s2'>", "<a name='s2'/><h2>"),
        STORIES.replace("<h2 id='s2'>", "<h2><a id='s2'></a>"),
        STORIES.replace("<h2 id='s2'>", "<br id='s2'/><h2>"),
        STORIES.replace("<h2 id='s2'>", "<div class='x' id=\"s2\"></div><h2>"),
    ],
    ids=["heading", "empty link", "link in heading", "line break", "division"],
)  # fmt: skip
def test_several_chapters_in_one_file(body: str, read: Callable[[Members], list[Part]]) -> None:
    found = read(one_file(body, "".join(point(f"#s{n}", f"Story {n}") for n in (1, 2, 3))))
    assert found == [
        Part(f"[chapter {n}: Story {n}]\n## Story {n}\n\nCode {n}.\n\n", f"chapter {n}: Story {n}")
        for n in (1, 2, 3)
    ]


def test_sections_of_a_chapter_are_named_with_it(read: Callable[[Members], list[Part]]) -> None:
    points = point("", "Chapter 1", point("#s2", "Duties") + point("#t", "Rights"))
    body = "<p>Before.</p><h2 id='s2'>Duties</h2><p>Many.</p><table><tr id='t'><td>None</td></tr></table>"
    assert [(part.section, part.text.split("\n")[0]) for part in read(one_file(body, points))] == [
        ("Chapter 1", "[Chapter 1]"),
        ("Chapter 1 / Duties", "## Duties"),
        ("Chapter 1 / Rights", "None"),
    ]


def test_the_navigation_of_epub_3_is_its_table_of_contents_only(
    read: Callable[[Members], list[Part]],
) -> None:
    members = one_file(STORIES, point("", "Wrong"))
    nav = "".join(f"<li><a href='text/z%200.xhtml#s{n}'>Story <b>{n}</b></a></li>" for n in (1, 2, 3))
    members["OEBPS/nav.xhtml"] = (
        f"<html><body><nav epub:type='landmarks'><a href='text/z%200.xhtml#s2'>Start</a></nav>"
        f"<nav epub:type='toc'><ol>{nav}</ol></nav></body></html>"
    )
    item = '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
    members["OEBPS/book.opf"] = str(members["OEBPS/book.opf"]).replace("<manifest>", f"<manifest>{item}")
    assert [part.section for part in read(members)] == [f"chapter {n}: Story {n}" for n in (1, 2, 3)]


def test_drawings_have_words(read: Callable[[Members], list[Part]]) -> None:
    words = "<title>Map</title><text x='1'>North <tspan>4711</tspan></text>"
    drawn = f"<svg xmlns='http://www.w3.org/2000/svg'>{words}</svg>"
    members = changed(NAMES[0], ("Code 111.", drawn))
    members["OEBPS/text/map.svg"] = f"<?xml version='1.0'?>{drawn}"
    item = '<item id="map" href="text/map.svg" media-type="image/svg+xml"/>'
    members["OEBPS/book.opf"] = (
        str(members["OEBPS/book.opf"])
        .replace("<manifest>", f"<manifest>{item}")
        .replace("</spine>", '<itemref idref="map"/></spine>')
    )
    first, *_, last = read(members)
    assert "Map" in first.text
    assert "North 4711" in first.text
    assert last == Part("[chapter 4]\nMap\nNorth 4711\n\n", "chapter 4")
