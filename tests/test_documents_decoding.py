"""Bytes to text: text comes back unchanged, whatever the encoding and however the bytes are split."""

from __future__ import annotations

import codecs
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adamas_cli.documents.decoding import HEAD_BYTES, decode, is_binary

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
FRENCH = "L\u2019été, Zoé préfère les crêpes à 5 € \u2013 « bien sûr » \u2013 et le cœur léger.\n"
ENGLISH = "The quick brown fox jumps over the lazy dog and says nothing at all.\n"

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}

characters = st.characters(codec="utf-8", exclude_characters="\r\ufeff\0")
sizes = st.integers(min_value=1, max_value=97)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def text_of(data: bytes, size: int = 4096) -> str:
    return "".join(decode(cut(data, size)))


@given(st.text(characters), sizes)
@example("é" * HEAD_BYTES, 7)
@example("a" * (HEAD_BYTES - 1) + "€", 64)
def test_utf8_comes_back_however_it_is_cut(text: str, size: int) -> None:
    assert text_of(text.encode(), size) == text


@pytest.mark.parametrize("encoding", MARKS)
@given(text=st.text(characters), size=sizes)
def test_marked_encodings_come_back_without_their_mark(encoding: str, text: str, size: int) -> None:
    data = MARKS[encoding] + text.encode(encoding)
    assert text_of(data, size) == text
    assert not is_binary(data[:HEAD_BYTES])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", [ENGLISH, FRENCH, JAPANESE, "x", ENGLISH * 400])
def test_wide_encodings_are_known_without_a_mark(encoding: str, text: str) -> None:
    data = text.encode(encoding)
    assert not is_binary(data[:HEAD_BYTES])
    assert text_of(data, 1000) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp932", JAPANESE),
        ("cp932", "int x; // 変数\nint y; // アイウエオ\n"),
        ("cp932", "ソースコードのファイル\n"),
        ("cp1252", FRENCH),
        ("cp1252", "Die Größe der Straße für Fußgänger überrascht.\n"),
        ("latin-1", "Señor Núñez pagó 50 £ por año.\n"),
        ("latin-1", "/* Copyright © 2001 */\nint main(void) { return 0; }\n"),
        ("euc_jp", JAPANESE * 2),
        ("gb18030", "你好世界。这是一个测试文件。用于检测编码。\n"),
        ("cp1251", "Привет, мир. Это проверка кодировки текста.\n"),
    ],
)
@pytest.mark.parametrize("lead", ["", ENGLISH * 4000], ids=["at once", "after 270 KB of ASCII"])
@pytest.mark.parametrize("times", [1, 3000])
def test_legacy_encodings_are_recognized(encoding: str, text: str, lead: str, times: int) -> None:
    data = (lead + text * times).encode(encoding)
    assert not is_binary(data[:HEAD_BYTES])
    assert text_of(data, 5000) == lead + text * times


@given(st.text(st.characters(codec="latin-1", categories=("Ll", "Lu")), min_size=1, max_size=40), sizes)
def test_accents_in_english_are_western(word: str, size: int) -> None:
    text = "".join(f"The word a{character}e is in the text. " for character in word)
    assert text_of(text.encode("cp1252"), size) == text


@given(st.text(characters, max_size=300), st.integers(0, 300), sizes)
def test_a_stray_byte_spoils_nothing_else(text: str, position: int, size: int) -> None:
    head, tail = text[:position], text[position:]
    lead = "é" * 3 + "\n"  # marks it as UTF-8
    data = (lead + head).encode() + b"\xe9\n" + tail.encode()
    assert text_of(data, size) == lead + head + "é\n" + tail


def test_a_late_bad_byte_is_read_as_windows_1252() -> None:
    data = (FRENCH * 5000).encode() + b"caf\xe9 \x81."
    assert text_of(data) == FRENCH * 5000 + "café \ufffd."


def test_a_cut_off_character_at_the_end_is_marked() -> None:
    assert text_of(JAPANESE.encode() + "猫".encode()[:2]) == JAPANESE + "\u00e7\u0152"
    assert text_of((codecs.BOM_UTF16_LE + "ab".encode("utf-16-le"))[:-1]) == "a\ufffd"


@given(st.lists(st.sampled_from(["a", "é", "\r", "\n", "\r\n"])), sizes)
def test_line_ends_become_newlines(parts: list[str], size: int) -> None:
    text = "".join(parts)
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert text_of(text.encode(), size) == expected
    assert text_of(codecs.BOM_UTF16_BE + text.encode("utf-16-be"), size) == expected


@given(st.binary(max_size=500), sizes)
def test_any_bytes_become_text_without_an_error(data: bytes, size: int) -> None:
    is_binary(data)
    text = text_of(data, size)
    text.encode()  # no lone surrogates, so that tokenizers accept it
    assert "\r" not in text


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))))
def test_printable_text_is_never_binary(text: str) -> None:
    assert not is_binary(text.encode()[:HEAD_BYTES])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [256, 2000, HEAD_BYTES])
def test_random_bytes_are_binary(seed: int, size: int) -> None:
    assert is_binary(random.Random(seed).randbytes(size))


@pytest.mark.parametrize(
    "head",
    [
        b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\n",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04word/document.xml",
        b"text with a \0 byte\n" * 20,
        bytes(HEAD_BYTES),
        b"\x01\x02\x03\x04",
    ],
)
def test_these_are_binary(head: bytes) -> None:
    assert is_binary(head)


@pytest.mark.parametrize("text", [b"", b"\x1b[31mred\x1b[0m\n", b"a\tb\x0cc\n", b"x" * HEAD_BYTES])
def test_these_are_text(text: bytes) -> None:
    assert not is_binary(text)
