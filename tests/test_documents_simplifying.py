"""Clutter that a model need not read is left out of a text and replaced by its count."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamas_cli.documents import Collection, Selection, collect
from adamas_cli.documents.simplifying import simplified
from adamas_cli.errors import NothingReadableError
from adamas_cli.progress import Silent

DATA = "iVBORw0KGgo" * 60  # 660 characters of base64


def simple(text: str, size: int = 0, *, keep_lines: bool = False) -> str:
    pieces = [text[start : start + size] for start in range(0, len(text), size)] if size else [text]
    return "".join(simplified(pieces, keep_lines=keep_lines))


def found(*sources: Path | str, stdin: bytes = b"", **selection: object) -> Collection:
    chosen = Selection(**{"tree": False} | selection)  # type: ignore[arg-type]
    return collect(list(map(str, sources)), chosen, stdin=io.BytesIO(stdin), progress=Silent())


def read(content: bytes, **selection: object) -> tuple[str, list[str]]:
    collection = found("-", stdin=content, **selection)
    return "".join(collection.documents[0].pieces()), collection.note_lines()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"![a](data:image/png;base64,{DATA}) more\n", "![a](data:image/png;base64,[660 characters]) more\n"),
        (
            f"url('data:image/svg+xml;utf8,<svg a=\"b c\">{'x' * 200}</svg>') no\n",
            "url('data:image/svg+xml;utf8,[219 characters]') no\n",
        ),
        (
            f"src=data:font/woff2;charset=utf-8;base64,{DATA} x\n",
            "src=data:font/woff2;charset=utf-8;base64,[660 characters] x\n",
        ),
        (f"url(data:image/svg+xml,%3Csvg{'%20' * 90}) x", "url(data:image/svg+xml,[276 characters]) x"),
        ("data:text/plain,short stays\n", "data:text/plain,short stays\n"),
        (
            f"data:a/b;base64,{DATA} data:a/b;base64,{DATA}\n",
            "data:a/b;base64,[660 characters] data:a/b;base64,[660 characters]\n",
        ),
        ("the data: none/here, and more\n", "the data: none/here, and more\n"),
    ],
)
def test_data_in_uris_is_counted(text: str, want: str) -> None:
    assert simple(text) == want


@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_data_over_many_lines(size: int) -> None:
    body = ("B" * 76 + "\n") * 20
    text = f'<image href="data:image/png;base64,{"A" * 76}\n{body}CC=="/>\nnext\n'
    assert simple(text, size) == '<image href="data:image/png;base64,[1,600 characters]"/>\nnext\n'
    reference = f"[i]: data:image/png;base64,{DATA}\nNext line of the text\n"
    assert simple(reference, size) == "[i]: data:image/png;base64,[660 characters]\nNext line of the text\n"
    assert (
        simple("[i]: data:image/png;base64,QUJD\nNext\n", size) == "[i]: data:image/png;base64,QUJD\nNext\n"
    )
    assert simple("[i]: data:image/png;base64,QUJD", size) == "[i]: data:image/png;base64,QUJD"


@pytest.mark.parametrize("size", [0, 1, 5])
def test_repeated_lines_are_counted(size: int) -> None:
    assert simple("a\n" + "same\n" * 1204 + "b\n", size) == "a\nsame [× 1,204]\nb\n"
    assert simple("same\n" * 24 + "b\n" + "\n" * 20, size) == "same\n" * 24 + "b\n" + "\n" * 20
    assert simple("x\r\n" * 50, size) == "x [× 50]\n"
    assert simple("x\n" * 50 + "x", size) == "x [× 50]\nx"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("\x1b[32mINFO\x1b[0m started\n", "INFO started\n"),
        ("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\n", "xlink\n"),
        ("\x1b[2K\x1b[1A\x1b[38;5;196mred\x1b(B\x1b[m\n", "red\n"),
        ("\x1b[?25l\x1b7\x1b8\x1b=done\x1b>\n", "done\n"),
        ("N\bNA\bAM\bME\bE _\bx\n", "NAME x\n"),
        ("|\b/\b-\bok\n", "ok\n"),
        ("broken \x1b", "broken "),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_terminal_codes_are_left_out(text: str, want: str, size: int) -> None:
    assert simple(text, size) == want


PROGRESS = [
    (
        "".join(f"\rDownloading {n}%" for n in range(101)) + "\nDone\n",
        "Downloading 100% [after 100 earlier states]\nDone\n",
    ),
    (
        "".join(f"\r{n}%|{'█' * (n // 10)}| {n}/100 [00:{n:02}<00:01]" for n in range(0, 101, 10)) + "\n",
        "100%|██████████| 100/100 [00:100<00:01] [after 10 earlier states]\n",
    ),
    (
        "".join(f"remote: Counting objects: {n}% ({n}/50)\r" for n in range(50))
        + "remote: Counting objects: 100%, done.\n",
        "remote: Counting objects: 100%, done. [after 50 earlier states]\n",
    ),
    ("".join(f"\r{s} building" for s in "⠋⠙⠹⠸⠼⠴⠦⠧") + "\n", "⠧ building [after 7 earlier states]\n"),
]


@pytest.mark.parametrize(("text", "want"), PROGRESS)
@pytest.mark.parametrize("size", [0, 1, 11])
def test_overwritten_progress_is_counted(text: str, want: str, size: int) -> None:
    assert simple(text, size) == want


@pytest.mark.parametrize(
    "text",
    ["one\rtwo\rthree\r", "Dear Sir,\rthe 5 apples\rcost 3.50\r\rYours\r", "Ulm;126\rBonn;330\rKiel;246\r"],
)
def test_line_ends_of_old_macs_stay_line_ends(text: str) -> None:
    assert simple(text) == text.replace("\r", "\n")
    assert read(text.encode())[0] == text.replace("\r", "\n")


@given(
    st.lists(
        st.sampled_from(["a", "b\n", "\r\n", "\r", "\n", "\x1b[1m", "5%", "data:a/b;base64,", "AAAA", " "])
    ),
    st.integers(1, 9),
)
def test_how_it_is_cut_changes_nothing(parts: list[str], size: int) -> None:
    text = "".join(parts)
    assert simple(text, size) == simple(text)
    assert "\r" not in simple(text)


@given(st.text(st.sampled_from("ab \n"), max_size=60))
def test_plain_text_stays(text: str) -> None:
    if not any(line * 25 in text for line in ("a\n", "b\n", "ab\n", "ba\n")):
        assert simple(text) == text


def test_numbered_lines_stay_as_many() -> None:
    text, _ = read(b"a\n" * 30 + b"\x1b[1mb\x1b[0m\n", line_numbers=True)
    assert text.splitlines()[-1] == "31| b"
    assert simple("5%\r6%\r7%\rx\n" + "y\n" * 20, keep_lines=True).count("\n") == 21


def test_a_log_as_it_is_read(tmp_path: Path) -> None:
    log = b"\x1b[31mERROR\x1b[0m disk full\n" * 40 + b"\x1b[32mINFO\x1b[0m done\n"
    assert read(log) == ("ERROR disk full [× 40]\nINFO done\n", ["stdin: left out: terminal codes (82)"])
    (tmp_path / "a.log.gz").write_bytes(gzip.compress(log))
    collection = found(tmp_path / "a.log.gz")
    assert "".join(collection.documents[0].pieces()) == "ERROR disk full [× 40]\nINFO done\n"
    wide = "\x1b[1msame\n" * 40
    assert read(wide.encode("utf-16")) == ("same [× 40]\n", ["stdin: left out: terminal codes (40)"])


def test_a_late_clutter_is_seen(tmp_path: Path) -> None:
    plain = "".join(f"line {n} of a long log\n" for n in range(40_000))
    (tmp_path / "a.txt").write_text(plain + "same\n" * 500 + f"data:a/b;base64,{DATA}\n")
    text = "".join(found(tmp_path / "a.txt").documents[0].pieces())
    assert text == plain + "same [× 500]\ndata:a/b;base64,[660 characters]\n"


class TestBinary:
    """A flaw does not make a text binary, and users can force reading of a binary file."""

    NUL_LOG = b"2025-03-03 10:00 start\n" * 4 + bytes(63) + b"2025-03-03 10:05 restart\n"

    @pytest.mark.parametrize("name", ["a.log", "a.txt", "messages.1", "a"])
    def test_nul_bytes_in_a_named_file_are_left_out_and_counted(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(self.NUL_LOG)
        collection = found(tmp_path / name)
        (document,) = collection.documents
        assert "".join(document.pieces()) == self.NUL_LOG.replace(b"\0", b"").decode()
        assert collection.note_lines() == [f"{tmp_path}/{name}: left out: NUL bytes (63)"]

    def test_a_hole_at_the_beginning_of_a_log(self, tmp_path: Path) -> None:
        (tmp_path / "a.log").write_bytes(bytes(300_000) + b"10:05 restart\n")
        for source in (tmp_path, tmp_path / "a.log"):
            collection = found(source)
            assert "".join(collection.documents[0].pieces()) == "10:05 restart\n"
            assert collection.note_lines() == [f"{tmp_path}/a.log: left out: NUL bytes (300,000)"]
        (tmp_path / "b.log").write_bytes(bytes(300_000))
        assert found(tmp_path).skipped_line() == "skipped 1: 1 binary"

    def test_in_a_folder_its_name_must_be_that_of_text(self, tmp_path: Path) -> None:
        for name in ("a.log", "b.dat"):
            (tmp_path / name).write_bytes(b"one flaw: \0\n" + b"another line\n" * 5)
        collection = found(tmp_path)
        assert [document.path for document in collection.documents] == [f"{tmp_path}/a.log"]
        assert collection.skipped_line() == "skipped 1: 1 binary"

    @pytest.mark.parametrize(
        "text",
        [
            b"BZhang wrote this.\n",
            b"GIF89a is a format.\n",
            b"%PDF-1.4 is how a PDF begins.\n",
            b"PK is short.\n",
            b"{\\rtfx is no RTF\n",
            b"MZ and ELF are marks.\n",
            b"GIF8 and BZh\n",
            b"BM is Bonn's mark\n",
            b"RIFF raff\n",
            b"ID3 tags\n",
        ],
    )
    def test_text_that_begins_like_a_signature(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "a.txt").write_bytes(text)
        assert "".join(found(tmp_path).documents[0].pieces()) == text.decode()

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"BZh91AY&SY\x12\x34", "1 damaged"),
            (b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff", "1 damaged"),
            (b"\x7fELF\x02\x01\x01" + bytes(9), "1 binary; `text` reads binary"),
            (b"\x89PNG\r\n\x1a\n" + bytes(9), "1 damaged"),
            (
                b"a.txt".ljust(100, b"\0") + b"0000644\0" * 3 + bytes(133) + b"ustar\0" + b"text\n" * 900,
                "1 damaged",
            ),
        ],
    )
    def test_real_binaries_are_skipped(self, tmp_path: Path, content: bytes, why: str) -> None:
        (tmp_path / "a.log").write_bytes(content)
        with pytest.raises(NothingReadableError, match=why):
            found(tmp_path / "a.log")

    def test_text_forces(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").write_bytes(b"\x89PNG\r\n\x1a\n" + b"caption\x01\x02" + bytes(30))
        collection = found(tmp_path / "a.bin", text=True)
        assert "caption" in "".join(collection.documents[0].pieces())
        assert collection.note_lines()[0] == f"{tmp_path}/a.bin: left out: control characters (33)"
        page = b"<!doctype html><html><body><p>Text.</p></body></html>"
        assert read(page, text=True)[0] == page.decode()
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "c.dat").write_bytes(b"word\0" * 9)
        assert "".join(found(tmp_path / "b", text=True).documents[0].pieces()) == "word" * 9


@pytest.mark.parametrize(
    "text",
    [
        "1" * 300_000 + "\r" + "2" * 300_000 + "\n",
        "a" * 300_000 + "\b" * 300_000 + "\n",
        "data:a/b;" * 100_000 + "\n",
        "data:a/b;base64,A\n" * 50_000,
        "data:a/b;base64," + ("A" * 76 + "\n") * 50_000,
        "\x1b]" * 100_000 + "\n",
        "5%\r" * 100_000 + "\n",
    ],
    ids=["digits", "backspaces", "beginnings", "URIs", "wrapped data", "titles", "states"],
)
@pytest.mark.timeout(30)
def test_hostile_lines_take_no_longer_than_their_length(text: str) -> None:
    assert len(simple(text)) <= len(text)
