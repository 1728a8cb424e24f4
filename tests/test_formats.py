"""Each format becomes text with sections; what cannot be read is skipped for a reported reason."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from document_files import (
    RTF,
    archive,
    docx,
    docx_members,
    encrypted_pdf,
    epub,
    epub_members,
    odt,
    odt_members,
    pdf,
)

from adamas_cli.documents import Collection, Part, Selection, collect
from adamas_cli.documents.collection import Reason
from adamas_cli.documents.converted import ConvertedTexts, converted_directory, prune, texts_on_disk
from adamas_cli.documents.file_tree import Written
from adamas_cli.documents.formats import archive as archives
from adamas_cli.documents.formats import html, markup
from adamas_cli.documents.formats.reader import Reader
from adamas_cli.documents.formats.recognize import Format, recognized
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.formats.worker import MEMORY_BYTES, read
from adamas_cli.documents.gzipped import Gzipped
from adamas_cli.errors import AdamasError, NothingReadableError
from adamas_cli.progress import Silent

BOOK = [
    ("The Trial", "<h1>The Trial</h1><p>Someone must have slandered Josef K.</p>"),
    ("", "<p>K. waited.</p>"),
]
LETTER = [("Heading1", "Greetings"), ("", "Dear Anna,"), ("Heading2", "News"), ("", "It rains.")]
BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ADAMAS_CACHE_DIR", str(tmp_path / "cache"))
    return work


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as running:
        yield running


def found(*sources: str, stdin: bytes = b"", keep: bool = True, **selection: object) -> Collection:
    chosen = Selection(**{"tree": False} | selection)  # type: ignore[arg-type]
    return collect(sources, chosen, stdin=io.BytesIO(stdin), progress=Silent(), keep_converted=keep)


def parts_of(name: str, content: bytes) -> list[Part]:
    Path(name).write_bytes(content)
    (document,) = found(name).documents
    return list(document.parts())


def trouble_of(reader: Reader, kind: Format, content: bytes) -> Trouble:
    Path("file").write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        list(reader.read(kind, "file"))
    return caught.value.trouble


def test_a_pdf_names_its_pages() -> None:
    assert parts_of("a.pdf", pdf(["first", "", "third"])) == [
        Part("[page 1]\nfirst\n\n", "page 1"),
        Part("[page 3]\nthird\n\n", "page 3"),
    ]


def test_pages_without_text_are_counted() -> None:
    Path("scan.pdf").write_bytes(pdf(["text", "", ""]))
    note = "scan.pdf: 2 of 3 pages have no text (scanned?)"
    assert found("scan.pdf").notes == [note]
    assert found("scan.pdf").notes == [note], "also when its text comes from the cache"
    Path("all.pdf").write_bytes(pdf(["", ""]))
    with pytest.raises(NothingReadableError, match=r"all.pdf: 2 of 2 pages have no text \(scanned\?\)"):
        found("all.pdf")


def test_an_epub_names_its_chapters_in_the_order_of_the_spine() -> None:
    first, second = parts_of("b.epub", epub(BOOK))
    assert first == Part(
        "[chapter 1: The Trial]\n# The Trial\n\nSomeone must have slandered Josef K.\n\n",
        "chapter 1: The Trial",
    )
    assert second == Part("[chapter 2]\nK. waited.\n\n", "chapter 2")


def test_what_a_reader_leaves_out_is_said() -> None:
    members = epub_members(BOOK)
    del members["OEBPS/text/y 1.xhtml"]
    Path("b.epub").write_bytes(archive(members, first="application/epub+zip"))
    note = "b.epub: left out: chapters that are missing from the file (1)"
    assert found("b.epub").note_lines() == [note]
    assert found("b.epub").note_lines() == [note], "also when its text comes from the cache"


def test_a_book_counts_its_chapters_itself() -> None:
    body = "<h1>3. Duties</h1><p>Many.</p>"
    cover = ("Cover", "<img src='cover.png'/>")
    sections = [
        part.section
        for part in parts_of("b.epub", epub([cover, ("Chapter I", "<p>a</p>"), ("Duties", body)]))
    ]
    assert sections == ["Chapter I", "3. Duties"]


def test_an_epub_with_a_navigation_document() -> None:
    nav = "<html><body><nav epub:type='toc'><a href='one.xhtml#a'>Début</a></nav></body></html>"
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        '<item id="n" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        '<item id="o" href="one.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="o"/></spine></package>'
    )
    container = '<container><rootfiles><rootfile full-path="book.opf"/></rootfiles></container>'
    members = {
        "META-INF/container.xml": container,
        "book.opf": package,
        "nav.xhtml": nav,
        "one.xhtml": "<p>Un.</p>",
    }
    content = archive(members, first="application/epub+zip")
    assert parts_of("b.epub", content) == [Part("[chapter 1: Début]\nUn.\n\n", "chapter 1: Début")]


def test_a_word_document_is_cut_at_its_headings() -> None:
    assert parts_of("l.docx", docx(LETTER)) == [
        Part("# Greetings\n\nDear Anna,\n\n", "Greetings"),
        Part("## News\n\nIt rains.", "News"),
        Part("\n"),
    ]


def test_a_web_page_loses_scripts_and_keeps_outer_links() -> None:
    page = b"""<!doctype html><html><head><title>t</title><style>p{}</style></head><body>
    <p>Before <a href="#x">inside</a>, <a href="https://example.org/">outside</a>.<script>no()</script></p>
    <h2>A *title*</h2><pre># not a heading</pre><ul><li>one</li></ul>
    <img src="p.png" alt="a picture"></body></html>"""
    first, second, _ = parts_of("p.html", page)
    assert first == Part("title: t\n\nBefore inside, [outside](https://example.org/).\n\n")
    assert second.section == "A title"
    assert "# not a heading" in second.text
    assert "- one" in second.text
    assert "a picture" in second.text
    assert "no()" not in first.text + second.text


@pytest.mark.parametrize(
    "page",
    [
        b"<!doctype html><html>{% block body %}{% endblock %}</html>",
        b"<p>a fragment</p>",
        b"<!doctype html><html><body><script>run()</script></body></html>",
    ],
)
def test_templates_fragments_and_pages_of_scripts_are_source_code(page: bytes) -> None:
    assert parts_of("page.html", page) == [Part(page.decode())]


def test_rtf_and_odt() -> None:
    assert parts_of("a.rtf", RTF) == [Part("The café opens\nat nine.\n")]
    listed = "<t:list><t:list-item><t:p>Two.</t:p></t:list-item></t:list>"
    content = f'<t:h t:outline-level="2">Title</t:h><t:p>One.</t:p>{listed}'
    assert parts_of("a.odt", odt(content))[0] == Part("## Title\n\nOne.\n\nTwo.", "Title")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("odf", "odf.opendocument", "striprtf", "striprtf.striprtf"):
        monkeypatch.setitem(sys.modules, name, None)
    for kind in (Format.ODT, Format.RTF):
        with pytest.raises(UnreadableError) as caught:
            list(read(kind, "any"))
        assert caught.value.trouble is Trouble.NO_OFFICE


def test_content_goes_before_the_name() -> None:
    assert recognized(pdf(["x"]), "book.txt") is Format.PDF
    assert recognized(b"junk\n" + pdf(["x"]), "book.pdf") is Format.PDF
    assert recognized(epub(BOOK), "book.zip") is Format.EPUB
    assert recognized(odt(""), "x") is Format.ODT
    assert recognized(docx(LETTER), "stdin") is Format.DOCX
    assert recognized(RTF, "a.doc") is Format.RTF
    assert recognized(archive({"a.txt": "text"}), "a.zip") is Format.ARCHIVE
    assert recognized(b"plain text", "a.pdf") is None


@pytest.mark.timeout(20)
def test_many_comments_before_a_fragment_take_no_time() -> None:
    comments = b"<!-- a -->\n" * 700
    assert recognized(comments + b"<div>", "a.html") is None
    assert recognized(comments + b"<html>", "a.html") is Format.HTML
    assert recognized(b"<!--" + b"x" * 3000 + b"--><html>", "a.html") is None


def test_a_document_on_stdin_is_recognized() -> None:
    (document,) = found("-", stdin=pdf(["piped"])).documents
    assert (document.path, "".join(document.pieces())) == ("stdin", "[page 1]\npiped\n\n")
    (document,) = found("-", stdin=gzip.compress(b"packed text")).documents
    assert "".join(document.pieces()) == "packed text"


def test_control_characters_of_a_document_are_dropped() -> None:
    page = b"<!doctype html><html><body><p>a\x1b[31mb&#27;c\x00</p></body></html>"
    assert parts_of("p.html", page)[0].text == "a[31mbc"


class TestGzip:
    """Text inside gzip is read as it streams."""

    def test_text_and_documents_inside(self) -> None:
        text = "one\r\ntwo\n" * 100_000
        Path("a.txt.gz").write_bytes(
            gzip.compress(text[:450_000].encode()) + gzip.compress(text[450_000:].encode())
        )
        Path("b.pdf.gz").write_bytes(gzip.compress(pdf(["inside"])))
        Path("c.gz").write_bytes(gzip.compress(bytes(range(256))))
        collection = found(".")
        first, second = collection.documents
        assert "".join(first.pieces()) == text.replace("\r\n", "\n")
        assert list(second.parts()) == [Part("[page 1]\ninside\n\n", "page 1")]
        assert collection.skipped_line() == "skipped 1: 1 binary"

    @pytest.mark.parametrize("damage", ["cut", "flipped", "garbage behind"])
    def test_damage_is_a_reason(self, damage: str) -> None:
        content = bytearray(gzip.compress(os.urandom(3000).hex().encode()))
        if damage == "cut":
            del content[-100:]
        elif damage == "flipped":
            content[len(content) // 2] ^= 0xFF
        else:
            content += b"garbage"
        Path("a.gz").write_bytes(content)
        Path("b.txt").write_text("good")
        assert found(".").skipped == {"damaged": 1}

    def test_a_bomb_is_a_reason_before_it_is_unpacked(self) -> None:
        bomb = gzip.compress(b" " * 64 * 2**20)
        Path("a.gz").write_bytes(bomb)
        with pytest.raises(NothingReadableError, match="1 too large when unpacked"):
            found("a.gz")
        inside = Gzipped(Written(bomb), len(bomb))
        with pytest.raises(UnreadableError):
            sum(map(len, inside.blocks()))

    def test_the_limit_of_a_walk_is_for_what_is_inside(self) -> None:
        Path("a.gz").write_bytes(gzip.compress(b"text " * 1000))
        Path("b.txt").write_text("good")
        assert found(".", max_file_size=1000).skipped == {Reason.TOO_LARGE: 1}
        assert len(found("a.gz", max_file_size=1000).documents) == 1


class TestTrouble:
    """No file, whatever it holds, ends the run."""

    def test_damaged_and_encrypted_files_are_counted(self) -> None:
        Path("good.txt").write_text("good")
        Path("a.pdf").write_bytes(b"%PDF-1.4 and nothing else")
        Path("b.pdf").write_bytes(encrypted_pdf())
        Path("c.epub").write_bytes(epub(BOOK)[:-30])
        Path("d.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000))
        collection = found(".")
        assert [document.path for document in collection.documents] == ["good.txt"]
        assert collection.skipped_line() == "skipped 4: 2 damaged, 2 encrypted"
        assert "a.pdf (" in collection.examples["damaged"][0]

    def test_a_book_that_a_shop_has_locked(self, reader: Reader) -> None:
        members = epub_members(BOOK)
        locked = next(name for name in members if name.endswith(".xhtml")).replace(" ", "%20")
        members["META-INF/encryption.xml"] = f'<encryption><CipherReference URI="{locked}"/></encryption>'
        content = archive(members, first="application/epub+zip")
        assert trouble_of(reader, Format.EPUB, content) is Trouble.ENCRYPTED

    def test_an_encrypted_odt(self, reader: Reader) -> None:
        members = odt_members("<t:p>x</t:p>")
        members["META-INF/manifest.xml"] = members["META-INF/manifest.xml"].replace(
            "<m:file-entry", "<m:encryption-data/><m:file-entry"
        )
        assert trouble_of(reader, Format.ODT, archive(members)) is Trouble.ENCRYPTED

    @pytest.mark.parametrize("kind", [Format.EPUB, Format.DOCX, Format.ODT])
    def test_zip_bombs(self, reader: Reader, kind: Format) -> None:
        content = archive({"word/document.xml": b" " * 20 * 2**20})
        assert trouble_of(reader, kind, content) is Trouble.TOO_LARGE
        many = archive({f"{n}": "" for n in range(archives.MAX_MEMBERS + 1)})
        assert trouble_of(reader, kind, many) is Trouble.TOO_LARGE

    def test_a_zip_that_understates_its_size(self, reader: Reader) -> None:
        """zipfile reads no more than the directory says, so the checksum is wrong."""
        members = docx_members([("", "word " * 1000)])
        content = bytearray(archive(members))
        size = len(members["word/document.xml"]).to_bytes(4, "little")
        assert content.count(size) == 2
        content = content.replace(size, (100).to_bytes(4, "little"))
        assert trouble_of(reader, Format.DOCX, bytes(content)) is Trouble.DAMAGED

    @pytest.mark.parametrize(("kind", "make"), [(Format.EPUB, epub), (Format.DOCX, docx)])
    def test_entities_are_not_expanded(self, reader: Reader, kind: Format, make) -> None:
        Path("file").write_bytes(make([("", "x")], prolog=BOMB))
        with pytest.raises(UnreadableError, match="EntitiesForbidden") as caught:
            list(reader.read(kind, "file"))
        assert caught.value.trouble is Trouble.DAMAGED

    def test_deep_nesting(self, reader: Reader) -> None:
        page = b"<html>" + b"<div>" * 100_000 + b"x"
        assert trouble_of(reader, Format.HTML, page) is Trouble.TOO_DEEP

    def test_a_page_too_large_to_parse(self, reader: Reader) -> None:
        Path("file").touch()
        os.truncate("file", html.MAX_BYTES + 1)
        with pytest.raises(UnreadableError) as caught:
            list(reader.read(Format.HTML, "file"))
        assert caught.value.trouble is Trouble.TOO_LARGE

    def test_one_that_hangs_is_ended_and_the_next_is_read(self) -> None:
        os.mkfifo("silent")
        Path("a.rtf").write_bytes(RTF)
        with Reader(silence=1.0) as impatient:
            begun = time.monotonic()
            with pytest.raises(UnreadableError) as caught:
                list(impatient.read(Format.RTF, "silent"))
            assert caught.value.trouble is Trouble.TOO_SLOW
            assert time.monotonic() - begun < 5
            assert list(impatient.read(Format.RTF, "a.rtf"))

    def test_one_that_crashes_is_replaced(self) -> None:
        os.mkfifo("silent")
        Path("a.rtf").write_bytes(RTF)
        with Reader() as crashing:
            list(crashing.read(Format.RTF, "a.rtf"))
            assert crashing._child is not None
            threading.Timer(0.3, crashing._child.kill).start()
            with pytest.raises(UnreadableError, match="crashed"):
                list(crashing.read(Format.RTF, "silent"))
            assert list(crashing.read(Format.RTF, "a.rtf"))

    def test_an_interruption_ends_the_reading_process(self) -> None:
        os.mkfifo("silent")
        pids = []

        def interrupt() -> None:
            assert interrupted._child is not None
            pids.append(interrupted._child.pid)
            os.kill(os.getpid(), signal.SIGINT)

        with Reader() as interrupted:
            timer = threading.Timer(0.5, interrupt)
            timer.start()
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                list(interrupted.read(Format.RTF, "silent"))
            assert time.monotonic() - begun < 1.5
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)

    def test_the_reading_process_is_limited(self, reader: Reader) -> None:
        Path("a.rtf").write_bytes(RTF)
        list(reader.read(Format.RTF, "a.rtf"))
        assert reader._child is not None
        limits = {
            kind: resource.prlimit(reader._child.pid, kind)[0]
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)
        }
        assert limits == {resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_FSIZE: 0}

    def test_no_module_is_imported_from_the_users_folder(self) -> None:
        Path("json.py").write_text("raise SystemExit")
        Path("a.rtf").write_bytes(RTF)
        with Reader() as careful:
            assert list(careful.read(Format.RTF, "a.rtf"))


class TestConvertedTexts:
    """A file is converted once for each content."""

    @pytest.fixture
    def readings(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        paths: list[str] = []
        real = Reader.read

        def counted(self: Reader, kind: Format, path: str, **options: object) -> Iterator[Part]:
            paths.append(path)
            return real(self, kind, path, **options)

        monkeypatch.setattr(Reader, "read", counted)
        return paths

    def test_the_same_content_is_converted_once(self, readings: list[str]) -> None:
        content = pdf(["some text"])
        want = parts_of("a.pdf", content)
        assert parts_of("other.pdf", content) == want
        assert parts_of("a.pdf", pdf(["more text"])) != want
        assert readings == ["a.pdf", "a.pdf"]

    def test_only_the_user_can_read_them(self) -> None:
        parts_of("a.pdf", pdf(["x"]))
        ((file, _),) = texts_on_disk(converted_directory())
        assert file.stat().st_mode & 0o777 == 0o600
        assert converted_directory().stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:-5], lambda b: b.replace(b"some", b"sane"), lambda b: b"", lambda b: b"[]\n"]
    )
    def test_damage_is_converted_again(self, damage, readings: list[str]) -> None:
        want = parts_of("a.pdf", pdf(["some text"]))
        ((file, _),) = texts_on_disk(converted_directory())
        file.write_bytes(damage(file.read_bytes()))
        assert parts_of("a.pdf", pdf(["some text"])) == want
        assert len(readings) == 2

    def test_nothing_is_left_where_a_file_cannot_be_converted(self) -> None:
        Path("a.pdf").write_bytes(b"%PDF-1.4 nothing")
        with pytest.raises(NothingReadableError):
            found("a.pdf")
        assert not [path for path in converted_directory().rglob("*") if path.is_file()]

    def test_without_keeping_the_text_ends_with_its_document(self) -> None:
        Path("a.pdf").write_bytes(pdf(["some text"]))
        (document,) = found("a.pdf", keep=False).documents
        file = document.content.file
        assert "".join(document.pieces()) == "[page 1]\nsome text\n\n"
        assert not converted_directory().exists()
        del document
        assert not file.exists()

    def test_a_cache_that_cannot_be_written_is_done_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ADAMAS_CACHE_DIR", "/proc/adamas")
        assert parts_of("a.pdf", pdf(["x"]))

    @pytest.mark.parametrize("full", [1, 2])
    def test_a_full_disk_costs_no_answer(
        self, full: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """One disk is full, or the one for temporary files too; this shows when half the text is written."""
        real = ConvertedTexts.keep
        fulls: list[Path] = []

        def keep(self: ConvertedTexts, key: str, parts: Iterator[Part]) -> object:
            if len(fulls) < full:
                fulls.append(self.root)
                next(parts)
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, key, parts)

        notes: list[str] = []
        progress = Silent()
        monkeypatch.setattr(progress, "note", notes.append)
        monkeypatch.setattr(ConvertedTexts, "keep", keep)
        for name in ("a.pdf", "b.pdf"):
            Path(name).write_bytes(pdf([f"text of {name}", "and a second page"]))
        collection = collect(["a.pdf", "b.pdf"], Selection(), stdin=io.BytesIO(), progress=progress)
        texts = ["".join(document.pieces()) for document in collection.documents]
        assert [text.splitlines()[1] for text in texts] == ["text of a.pdf", "text of b.pdf"]
        assert notes == [f"converted texts are not kept in {fulls[0]}: No space left on device"]
        assert fulls[0] == converted_directory()

    def test_a_full_disk_is_no_fault_of_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: ConvertedTexts, key: str, parts: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(ConvertedTexts, "keep", full)
        Path("a.pdf").write_bytes(pdf(["x"]))
        with pytest.raises(AdamasError, match=r"a.pdf cannot be written: .*No space left"):
            found("a.pdf")

    def test_the_least_recently_used_goes_first(self) -> None:
        texts = ConvertedTexts.open(kept=True)
        for age, key in enumerate(["aa", "bb", "cc"]):
            texts.keep(key, [Part("x" * 1000, "page 1")])
            os.utime(texts.root / key / f"{key}.jsonl", (1000 - age, 1000 - age))
        assert texts.find("cc") is not None  # the oldest one
        assert prune(texts.root, 2500) > 1000
        assert [file.stem for file, _ in texts_on_disk(texts.root)] == ["cc", "aa"]

    def test_a_text_that_vanished_says_so(self) -> None:
        Path("a.pdf").write_bytes(pdf(["x"]))
        (document,) = found("a.pdf").documents
        prune(converted_directory(), 0)
        with pytest.raises(AdamasError, match="run the command again"):
            list(document.parts())

    def test_a_file_that_changes_meanwhile_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Reader.read

        def changing(self: Reader, kind: Format, path: str, **options: object) -> Iterator[Part]:
            Path(path).write_bytes(pdf(["another text"]))
            return real(self, kind, path, **options)

        monkeypatch.setattr(Reader, "read", changing)
        Path("a.pdf").write_bytes(pdf(["some text"]))
        with pytest.raises(NothingReadableError, match="1 changed while it was converted"):
            found("a.pdf")
        assert texts_on_disk(converted_directory()) == []


def test_parts_are_short_and_a_long_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from adamas_cli.documents.formats import worker

    monkeypatch.setattr(worker, "PIECE", 10)
    Path("a.pdf").write_bytes(pdf(["a line of text"]))
    parts = list(read(Format.PDF, "a.pdf"))
    assert [part.section for part in parts] == ["page 1", None, None]
    assert "".join(part.text for part in parts) == "[page 1]\na line of text\n\n"


def test_headings_in_fences_begin_no_section() -> None:
    text = "# One\n\n```\n# comment\n```\n\n#### deep\n\n## [Two](x) `y`\nend"
    sections = [part.section for part in markup.headed(text)]
    assert sections == ["One", "Two(x) y", None]
    assert "".join(part.text for part in markup.headed(text)) == text + "\n"


def test_the_json_of_a_section_is_text_whatever_it_holds() -> None:
    texts = ConvertedTexts.open(kept=True)
    strange = Part('\ud800"\\\u2028{', '{"page": 1}')
    kept = texts.keep("ab", [strange])
    assert list(kept.parts()) == [strange]
    assert json.loads(kept.file.read_bytes().splitlines()[-1])["pages"] == 1
