"""Guesses the encoding of bytes without a declaration that are not UTF-8.

chardet's models of byte pairs rank the encodings. A short text gives close ranks, so two checks are added:
the decoded text of each candidate is examined (a capital inside a word, a box-drawing character between
letters, two scripts in a word), and an accent or a sign in English text is taken for Windows-1252.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from adamas_cli.documents.encodings import FALLBACK

# Encodings that text files are written in; chardet knows more, such as EBCDIC, and would confuse them.
_CANDIDATES = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
    *("cp932", "euc_jis_2004", "gb18030", "big5hkscs", "cp949", "johab"),
    *("iso8859-2", "iso8859-5", "iso8859-6", "iso8859-7", "iso8859-8", "iso8859-9", "iso8859-13"),
    *("iso8859-15", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic"),
    *("cp437", "cp737", "cp850", "cp852", "cp857", "cp862", "cp866"),
)
_CONTENDERS = 10  # candidates of chardet's ranking that are examined
_LEAST_CONFIDENCE = 0.004  # added, so that candidates near zero are ranked by their looks
_SAMPLE = 4000  # bytes that are judged

# How common an encoding is relative to Windows-1252, for English text, which has little other evidence.
_COMMON = {"cp1252": 1.0, "iso8859-15": 0.9, "cp932": 0.8, "gb18030": 0.8, "cp1250": 0.7, "cp1251": 0.7}
_RARE = 0.3
_TIE = 1.03
_ENGLISH_WEIGHT = 5.0
_ENGLISH_SHARE = 0.12
_FEW, _FEW_WEIGHT = 1, 1.0  # non-ASCII bytes, in any language
_ENGLISH = re.compile(
    rb"\b(?:the|of|and|is|was|for|by|it|that|with|this|are|from|all|rights|reserved|copyright|author"
    rb"|maintainer|int|return|def|import|class|void|if|else|to|not|price|note|file|inc|ltd|llc)\b",
    re.IGNORECASE,
)
_WORD = re.compile(rb"[A-Za-z]+")
_NOT_ASCII_RUN = re.compile(rb"[\x80-\xff]+")
# Windows-1252 characters that are not letters: quotes, dashes, currency, copyright, degree, guillemets.
_SIGNS = bytes({*range(0x80, 0xC0)} - set(b"\x81\x83\x8a\x8c\x8d\x8e\x8f\x90\x9a\x9c\x9d\x9e\x9f\xaa\xba"))
_AFTER_LETTERS = b"\x85\x92\x94\x99\x9b\xae\xb2\xb3\xb9\xbb"
_BEFORE_LETTERS = b"\x84\x8b\x91\x93\xa1\xa7\xab\xb5\xbf"
_INSIDE_ENGLISH = b"\x92\x96\x97"
_LONGEST_SIGNS = 3
_KANA_LEADS = b"\x81\x82\x83"  # Shift_JIS lead bytes; ASCII bytes may follow them
# The common part of an encoding whose rarer characters appear when other text is mistaken for it.
_COMMON_PART = {"gb18030": "gb2312", "cp949": "euc_kr"}

_INSIDE_WORDS = "\u2019\u2013\u2014\u2011\u00b7\u00ad"
_EAST_ASIAN = frozenset(["CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "HALFWIDTH"])
_LEAST_KANA = 3


def guessed(window: bytes) -> str:
    """The codec for `window`, which holds bytes that are neither ASCII nor UTF-8. It may end within one."""
    # Pure ASCII lines say nothing about the encoding, but much about whether the text is English.
    lines = b"".join(line for line in window.splitlines(keepends=True) if not line.isascii())
    english = _is_english(window)
    if _has_signs_only(lines, english=english) or (_is_english(lines) and _stand_alone(lines)):
        return FALLBACK
    for codec in ("euc_jis_2004", "cp932"):
        if _is_japanese(lines, codec):
            return codec
    from chardet import detect_all  # imported here because it would slow every start

    ranking = detect_all(lines, ignore_threshold=True, compat_names=False, include_encodings=_CANDIDATES)
    foreign = sum(map(len, _NOT_ASCII_RUN.findall(lines)))
    best, codec = -1.0, FALLBACK
    for rank in ranking[:_CONTENDERS]:
        name = rank["encoding"]
        if name is None or name not in _CANDIDATES:
            continue
        score = (rank["confidence"] + _LEAST_CONFIDENCE) * _looks(lines[:_SAMPLE], name) ** 2
        score *= _TIE if name == FALLBACK else 1.0
        if english or foreign <= _FEW:
            weight = _ENGLISH_WEIGHT if english else _FEW_WEIGHT
            score *= _COMMON.get(name, _RARE) ** (weight / (1 + foreign))
        if score > best:
            best, codec = score, name
    return codec


def _has_signs_only(lines: bytes, *, english: bool) -> bool:
    """Whether every non-ASCII byte is a Windows-1252 sign in a plausible place: not inside a word.

    The other Windows encodings have the same signs at the same bytes.
    """
    for run in _NOT_ASCII_RUN.finditer(lines):
        signs, start, end = run[0], run.start(), run.end()
        if signs.translate(None, _SIGNS) or len(signs) > _LONGEST_SIGNS:
            return False
        before, after = lines[max(start - 1, 0) : start].isalpha(), lines[end : end + 1].isalpha()
        if before and after:
            allowed = _INSIDE_ENGLISH if english else b""
        else:
            allowed = _AFTER_LETTERS if before else _BEFORE_LETTERS if after else signs
        if signs.translate(None, allowed):
            return False
    return True


def _stand_alone(lines: bytes) -> bool:
    """Whether non-ASCII letters are isolated, as accented letters are: other scripts fill whole words."""
    runs = _NOT_ASCII_RUN.findall(lines)
    kana = sum(len(run) - len(run.translate(None, _KANA_LEADS)) for run in runs)
    foreign = sum(map(len, runs))
    return 2 * foreign < 3 * len(runs) and 4 * kana < foreign


def _is_japanese(lines: bytes, codec: str) -> bool:
    """Whether all of it is valid in a Japanese encoding, with kana: other texts give these only by chance."""
    try:
        text = lines[: lines.rfind(b"\n") + 1 or len(lines)].decode(codec)
    except UnicodeDecodeError:
        return False
    foreign = [character for character in text if character > "\x7f"]
    kana = sum("\u3041" <= character <= "\u30ff" for character in foreign)
    odd = sum(_kind(character)[1] not in _EAST_ASIAN and _kind(character)[0] != "" for character in foreign)
    return kana >= _LEAST_KANA and 3 * kana > len(foreign) and not odd


def _is_english(window: bytes) -> bool:
    words = len(_WORD.findall(window))
    return len(_ENGLISH.findall(window)) >= _ENGLISH_SHARE * max(words, 1)


def _looks(sample: bytes, codec: str) -> float:
    """The share of non-ASCII characters that look right in this decoding, from 0 to 1."""
    text = sample.decode(codec, "replace")
    kinds = [_kind(character) for character in text]
    nothing = ("", "")
    count, odd = 0, 0.0
    common = _COMMON_PART.get(codec)
    for index, character in enumerate(text):
        if character < "\x80":
            continue
        count += 1
        before = kinds[index - 1] if index else nothing
        after = kinds[index + 1] if index + 1 < len(kinds) else nothing
        odd += _oddness(character, before, kinds[index], after)
        odd += 0.8 * (common is not None and not _can_be(character, common))
    return max(0.0, 1 - odd / max(count, 1))


def _oddness(character: str, before: tuple[str, str], own: tuple[str, str], after: tuple[str, str]) -> float:
    """How strange a character is between its neighbours: 0 if usual, 1 if it hardly ever occurs."""
    if character == "\ufffd" or "\x80" <= character <= "\x9f":
        return 1.5
    case, script = own
    if not case:
        if before[0] and after[0] and character not in _INSIDE_WORDS:
            return 1.0
        return 0.7 if "\u2500" <= character < "\u25a0" else 0.0
    if script in _EAST_ASIAN:
        return 0.0
    if case == "upper" and before == ("lower", script):
        return 1.0
    if case == "lower" and after == ("upper", script):
        return 0.7
    if any(other[0] and other[1] != script for other in (before, after)):
        return 0.8
    return 0.0


@cache
def _can_be(character: str, codec: str) -> bool:
    try:
        character.encode(codec)
    except UnicodeEncodeError:
        return False
    return True


@cache
def _kind(character: str) -> tuple[str, str]:
    """Whether a character is an `upper` or `lower` letter (or mark), and its script; empty for all others."""
    if not (character.isalpha() or unicodedata.combining(character)):
        return "", ""
    script = unicodedata.name(character, "").split(" ")[0]
    return ("upper" if character.isupper() else "lower"), script
