"""Encodings: declarations are followed, others are guessed well, and each guess is reported."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

import pytest
from encoded_texts import ENGLISH, SHORT, TEXTS

from adamas_cli.documents import Collection, Selection, collect
from adamas_cli.documents.decoding import decode, find_encoding, is_binary
from adamas_cli.documents.encodings import Origin, codec_of, declared, shown_name
from adamas_cli.documents.guessing import guessed
from adamas_cli.progress import Silent

POLISH = TEXTS["polish"][0]


def found(*sources: Path | str, stdin: bytes = b"", **selection: object) -> Collection:
    chosen = Selection(**{"tree": False} | selection)  # type: ignore[arg-type]
    return collect(list(map(str, sources)), chosen, stdin=io.BytesIO(stdin), progress=Silent())


def text(collection: Collection) -> str:
    (document,) = collection.documents
    return "".join(document.pieces())


@pytest.mark.parametrize("times", [1, 2000])
@pytest.mark.parametrize(
    ("language", "encoding"),
    [(language, encoding) for language, (_, encodings) in TEXTS.items() for encoding in encodings],
)
def test_sentences_without_a_declaration(language: str, encoding: str, times: int) -> None:
    data = (TEXTS[language][0] * times).encode(encoding)
    assert not is_binary(data[:8192])
    assert "".join(decode([data])) == TEXTS[language][0] * times


@pytest.mark.parametrize(("line", "encoding"), [*SHORT, *((line, "cp1252") for line in ENGLISH)])
def test_single_lines(line: str, encoding: str) -> None:
    assert "".join(decode([line.encode(encoding)])) == line


def test_the_languages_and_encodings_are_many() -> None:
    assert len(TEXTS) >= 25
    assert len({encoding for _, encodings in TEXTS.values() for encoding in encodings}) >= 25


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", TEXTS)
def test_unicode_without_a_mark(language: str, encoding: str) -> None:
    data = TEXTS[language][0].replace("\n", "\r\n").encode(encoding)
    assert not is_binary(data)
    assert "".join(decode([data])) == TEXTS[language][0]
    assert find_encoding([data]).origin is Origin.PATTERN


def test_utf_16_without_a_mark_and_without_ascii() -> None:
    data = "金庫の暗証番号は手帳の最後のページに書いてあります".encode("utf-16-le")
    assert not is_binary(data)
    assert "".join(decode([data])) == data.decode("utf-16-le")


DECLARATIONS = [
    ('<?xml version="1.0" encoding="{}"?>\n<p>{}</p>', "notes.xml"),
    ("<?xml version='1.0' encoding='{}' standalone='yes'?>\n<svg><text>{}</text></svg>", "drawing.svg"),
    ("# -*- coding: {} -*-\nx = '{}'\n", "code.py"),
    ("#!/usr/bin/python\n# vim: set fileencoding={} :\nx = '{}'\n", "code.py"),
    ("# coding={}\nx = '{}'\n", "code.py"),
    ("# encoding: {}\nputs '{}'\n", "code.rb"),
    (';; -*- mode: lisp; coding: {}-unix -*-\n"{}"\n', "code.el"),
    ('/* -*- coding: {} -*- */\nchar *s = "{}";\n', "code.c"),
    ("% -*- coding: {} -*-\n{}\n", "paper.tex"),
    ("\\documentclass{{article}}\n\\usepackage[{}]{{inputenc}}\n{}\n", "paper.tex"),
    ('@charset "{}";\n.a::before {{ content: "{}"; }}\n', "style.css"),
    ('<meta charset="{}">\n<p>{}</p>\n', "fragment.html"),
    ("<div><META http-equiv=content-type content='text/html; charset={}'>{}</div>\n", "fragment.html"),
    ('msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset={}\\n"\n\nmsgid "a"\nmsgstr "{}"\n', "pl.po"),
]


@pytest.mark.parametrize(("form", "name"), DECLARATIONS)
@pytest.mark.parametrize(
    ("label", "line"),
    [
        ("iso-8859-2", "źdźbło"),
        ("cp852", "źdźbło"),
        ("koi8-r", "синяя"),
        ("shift_jis", "ソース"),
        ("cp1250", "ó"),
    ],
)
def test_declarations_are_followed(tmp_path: Path, form: str, name: str, label: str, line: str) -> None:
    content = form.format(label, line)
    (tmp_path / name).write_bytes(content.encode(label))
    collection = found(tmp_path / name)
    assert text(collection) == content
    assert collection.note_lines() == []
    (document,) = collection.documents
    assert document.reading is not None
    assert document.reading.encoding.origin is Origin.DECLARED


@pytest.mark.parametrize(
    ("label", "encoding"),
    [
        ("latin1", "cp1252"),
        ("latin2", "iso8859-2"),
        ("ansinew", "cp1252"),
        ("applemac", "mac_roman"),
        ("cp1251", "cp1251"),
    ],
)
def test_names_of_latex(label: str, encoding: str) -> None:
    assert declared(b"\\usepackage[" + label.encode() + b"]{inputenc}") is not None
    content = f"\\usepackage[{label}]{{inputenc}}\n" + ("é" if encoding != "cp1251" else "ж")
    assert "".join(decode([content.encode(encoding)])) == content


def test_a_declaration_that_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# -*- coding: latin-1 -*-\nx = 'Zażółć gęślą'\n")
    assert found(tmp_path / "a.py").note_lines() == [f"{tmp_path}/a.py: declares latin-1, but is in utf-8"]
    (tmp_path / "b.xml").write_bytes(
        b'<?xml version="1.0" encoding="utf-8"?>\n' + POLISH.encode("cp1250") * 3
    )
    collection = found(tmp_path / "b.xml")
    assert POLISH in text(collection)
    assert "declares utf-8, but is in windows-1250" in collection.note_lines()[0]
    (tmp_path / "c.py").write_bytes(b"# coding: no-such-thing\n" + POLISH.encode("cp1250"))
    assert POLISH in text(found(tmp_path / "c.py"))


def test_text_about_declarations_is_not_one() -> None:
    assert declared(b"Write `&lt;meta charset=latin1&gt;` and the encoding: utf-8 is known.\n") is None
    assert declared(b"x = 1\ny = 2\n# coding: koi8-r\n") is None
    assert declared(b"") is None


@pytest.mark.parametrize(
    ("label", "codec"),
    [
        ("windows-1250", "cp1250"),
        ("Latin1", "cp1252"),
        ("ISO-8859-1", "cp1252"),
        ("utf8", "utf-8"),
        ("gb2312", "gb18030"),
        ("x-sjis", "cp932"),
        ("KOI8-R", "koi8-r"),
        ("macintosh", "mac-roman"),
        ("euc-kr", "cp949"),
        ("tis-620", "cp874"),
        ("windows-874", "cp874"),
    ],
)
def test_labels(label: str, codec: str) -> None:
    assert codec_of(label) == codec
    assert codec_of(shown_name(codec)) == codec


@pytest.mark.parametrize(
    "label", ["", "no-such-thing", "base64", "hex", "rot13", "idna", "a\0b", "zlib", "undefined"]
)
def test_what_is_no_encoding(label: str) -> None:
    assert codec_of(label) is None


@pytest.mark.parametrize("encoding", [e for _, encodings in TEXTS.values() for e in encodings])
def test_every_name_that_is_shown_can_be_given(encoding: str) -> None:
    codec = find_encoding([TEXTS["czech"][0].encode(encoding, "ignore")]).codec
    assert codec_of(shown_name(codec)) is not None


class TestGuesses:
    """A guess gets a line of its own; what is certain does not."""

    def test_one_line_for_every_guess(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(POLISH.encode("cp1250"))
        (tmp_path / "b.txt").write_text(POLISH)
        (tmp_path / "c.txt").write_text(POLISH, encoding="utf-16")
        (tmp_path / "d.txt").write_text("plain\n")
        notes = found(tmp_path).note_lines()
        assert notes == [f"{tmp_path}/a.txt: read as windows-1250, by a guess; `encoding` names another"]
        assert found("-", stdin=POLISH.encode("cp852")).note_lines() == [
            "stdin: read as cp852, by a guess; `encoding` names another"
        ]

    def test_many_guesses_end_with_a_count(self, tmp_path: Path) -> None:
        for number in range(25):
            (tmp_path / f"{number:02}.txt").write_bytes(POLISH.encode("cp1250"))
        lines = found(tmp_path).note_lines()
        assert len(lines) == 11
        assert (
            lines[-1] == "15 more documents: read as windows-1250 (15), by a guess; `encoding` names another"
        )

    def test_a_named_encoding_goes_before_every_sign(self, tmp_path: Path) -> None:
        (tmp_path / "a.py").write_bytes("# coding: koi8-r\nx = 'ąę'\n".encode("cp1250"))
        collection = found(tmp_path / "a.py", encoding="cp1250")
        assert text(collection) == "# coding: koi8-r\nx = 'ąę'\n"
        assert collection.note_lines() == []
        (tmp_path / "u.txt").write_bytes("ąę".encode())
        assert text(found(tmp_path / "u.txt", encoding="cp1250")) == "ąę".encode().decode("cp1250")
        assert text(found("-", stdin="ąę".encode("cp1250"), encoding="cp1250")) == "ąę"

    def test_in_folders_it_is_for_what_is_not_in_unicode(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes("ąę".encode("cp852"))
        (tmp_path / "b.txt").write_bytes("ąę".encode())
        (tmp_path / "c.txt").write_bytes(codecs.BOM_UTF16_LE + "ąę".encode("utf-16-le"))
        texts = ["".join(document.pieces()) for document in found(tmp_path, encoding="cp852").documents]
        assert texts == ["ąę"] * 3

    def test_a_named_utf_16_needs_no_mark(self) -> None:
        for data in ("ąę x".encode("utf-16"), "ąę x".encode("utf-16-le")):
            assert text(found("-", stdin=data, encoding="utf-16")) == "ąę x"
        assert text(found("-", stdin=codecs.BOM_UTF8 + b"x", encoding="utf-8")) == "x"


def test_a_guess_needs_no_line_end_and_no_whole_character() -> None:
    japanese = TEXTS["japanese"][0].encode("cp932")
    for end in range(60, 80):
        assert guessed(japanese[:end]) == "cp932"


def test_a_large_window_is_judged_in_time() -> None:
    import time

    data = (POLISH * 1000).encode("iso8859_2")[: 64 * 1024]
    begun = time.process_time()
    assert guessed(data) == "iso8859-2"
    assert time.process_time() - begun < 2
