"""Decodes bytes of any common encoding to text, in one pass and bounded memory.

A byte order mark or the pattern of NUL bytes reveals UTF-16 and UTF-32 at the start; escape codes reveal the
Japanese and Korean encodings of mail. Everything else is ASCII up to its first other byte. The choice waits
for that byte, however far into the file, and looks at what follows: UTF-8 if that fits, else the encoding
that the file declares, else the likeliest one.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator

from adamas_cli.documents.encodings import FALLBACK, Encoding, Origin, codec_of, declared, shown_name

HEAD_BYTES = 8 * 1024  # bytes that decide between text and binary, as in git
WINDOW_BYTES = 64 * 1024  # bytes that decide the encoding, from the first non-ASCII byte
CONTEXT_BYTES = 1024  # ASCII before that byte, which helps to identify the language

# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_WIDE_SHARE = 0.98  # share of assigned characters from which a wide encoding is accepted
_PATTERN_BYTES = 2048  # examined for the pattern of a wide encoding
_GLANCE, _GLANCE_SHARE = 64, 0.9  # a quick look that rules out most binaries
_LEAST_EAST_ASIAN = 16  # minimum number of characters when there is no NUL byte
_ASCII_PAIR = re.compile(
    "[" + "".join(f"{chr(256 * n + 32)}-{chr(256 * n + 126)}" for n in range(32, 127)) + "]"
)
_PAIR_SHARE = 0.75  # above this share of East Asian characters made of two ASCII bytes, the text is ASCII
_ODD_SHARE = 0.1
_EAST_ASIAN = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")

CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\f\r\b\x1b"))  # never in text; escape codes are, in logs
_CONTROL_SHARE = 0.03
_NULS = re.compile(rb"\0+")
_HOLE = 4  # NUL bytes in a row, where a log was truncated or the disk was full: counted as one flaw

# Whole signatures, each with a byte that never occurs in text.
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b\x08", b"\x7fELF", b"\xfd7zXZ\0")
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_PDF = re.compile(rb"%PDF-\d.{0,2000}?\d \d+ obj\b", re.DOTALL)
_TAR = slice(257, 262)

_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_JAPANESE_MAIL = re.compile(rb"\x1b\$[@B]|\x1b\$\([DOPQ]|\x1b\([JI]")
_KOREAN_MAIL = b"\x1b$)C"


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Read a stray byte in UTF-8 as Windows-1252: a late `caf\\xe9` in a file that looked like ASCII."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode(FALLBACK, "replace"), error.end


_STRAY_BYTES = "adamas-windows-1252"
codecs.register_error(_STRAY_BYTES, _as_windows_1252)


def is_binary(head: bytes, *, patient: bool = False) -> bool:
    """Whether a file that begins with `head` (its first `HEAD_BYTES`) holds no text.

    Binary means a known signature, a NUL byte outside UTF-16 and UTF-32, or too many control characters.
    `patient`: a few NUL bytes, or one long run of them, count as flaws of a text.
    """
    if head.startswith(_MAGIC) or _BZIP2.match(head) or _PDF.match(head) or head[_TAR] == b"ustar":
        return True
    if unicode_by_start(head) is not None:
        return False
    if b"\0" in head:
        if not patient:
            return True
        head = _NULS.sub(lambda run: b"\0" if len(run[0]) >= _HOLE else run[0], head)
    if _KOREAN_MAIL in head:
        head = head.translate(None, b"\x0e\x0f")  # these shift between its two alphabets
    controls = len(head) - len(head.translate(None, CONTROLS))
    return controls > _CONTROL_SHARE * len(head)


def decode(blocks: Iterable[bytes], encoding: Encoding | None = None) -> Iterator[str]:
    """The text of `blocks`, piece by piece, for blocks of any size; a piece is no longer than its blocks.

    Without an `encoding`, it is detected. A byte order mark is dropped and every line end (CRLF, CR)
    becomes `\\n`. Decoding never fails: a byte that is not UTF-8 in a UTF-8 text is read as Windows-1252, an
    invalid byte in another encoding becomes U+FFFD.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for text in characters(blocks, encoding):
        if piece := newlines.decode(text):
            yield piece
    if piece := newlines.decode("", final=True):
        yield piece


def characters(blocks: Iterable[bytes], encoding: Encoding | None = None) -> Iterator[str]:
    """The text of `blocks` as in `decode`, with its line ends unchanged."""
    stream = iter(blocks)
    if encoding is None:
        head = _at_least(HEAD_BYTES, b"", stream)
        held: list[bytes] = []
        encoding = find_encoding(_remembering(head, stream, held))
        stream = _chained(held, stream)
    first = _at_least(encoding.mark, b"", stream)
    errors = _STRAY_BYTES if encoding.codec == "utf-8" else "replace"
    decoder = codecs.getincrementaldecoder(encoding.codec)(errors)
    yield decoder.decode(first[encoding.mark :])
    for block in stream:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def text_of(content: bytes, named: str | None = None) -> tuple[str, Encoding]:
    """All the text of `content`, with its line ends unchanged, and its encoding, which may be `named`."""
    encoding = find_encoding([content], named)
    return "".join(characters([content], encoding)), encoding


def find_encoding(blocks: Iterable[bytes], named: str | None = None, *, keep_utf8: bool = False) -> Encoding:
    """The encoding of `blocks`; consumes no more of them than necessary.

    `named` is a codec that the user names; with `keep_utf8` it applies only to text that is not Unicode.
    """
    stream = iter(blocks)
    head = _at_least(HEAD_BYTES, b"", stream)
    if named is not None and not keep_utf8:
        return _as_named(named, head)
    wide = unicode_by_start(head)
    if wide is not None:
        return wide
    before, block = b"", head
    while block:
        if not block.isascii():
            found = _NOT_ASCII.search(block)
            start = found.start() if found else 0
            before = (before + block[max(0, start - CONTEXT_BYTES) : start])[-CONTEXT_BYTES:]
            rest = _at_least(WINDOW_BYTES, block[start:], stream)
            window = rest[:WINDOW_BYTES]
            if named is not None:
                return Encoding("utf-8") if _is_mostly_utf8(window) else _as_named(named, head)
            return _plausible(head, before, window)
        if b"\x1b" in block:
            mail = _mail_encoding(block)
            if mail is not None:
                return mail
        before = block[-CONTEXT_BYTES:]
        block = next(stream, b"")
    return Encoding("utf-8", 0, Origin.ASCII)


def _remembering(head: bytes, stream: Iterator[bytes], held: list[bytes]) -> Iterator[bytes]:
    """The blocks of `stream` after `head`; each is also appended to `held`."""
    held.append(head)
    yield head
    for block in stream:
        held.append(block)
        yield block


def _chained(held: list[bytes], stream: Iterator[bytes]) -> Iterator[bytes]:
    yield from held
    held.clear()
    yield from stream


def _at_least(size: int, block: bytes, blocks: Iterator[bytes]) -> bytes:
    """`block` followed by the whole blocks needed to reach `size` bytes, if there are enough."""
    if len(block) >= size:
        return block
    parts, held = [block], len(block)
    while held < size and (part := next(blocks, None)) is not None:
        parts.append(part)
        held += len(part)
    return b"".join(parts)


def _as_named(codec: str, head: bytes) -> Encoding:
    for mark, marked in _MARKS:
        if head.startswith(mark) and marked.startswith(codec.replace("_", "-")):
            return Encoding(marked, len(mark), Origin.NAMED)
    if codec in ("utf-16", "utf-32"):  # without a mark: little-endian, unless the pattern says otherwise
        found = unicode_by_start(head)
        codec = found.codec if found and found.codec.startswith(codec) else f"{codec}-le"
    return Encoding(codec, 0, Origin.NAMED)


def unicode_by_start(head: bytes) -> Encoding | None:
    """The Unicode encoding that a mark or a pattern reveals at the start of a file, or None."""
    for mark, codec in _MARKS:
        if head.startswith(mark):
            return Encoding(codec, len(mark), Origin.MARK)
    if b"\0" not in head and head.isascii():
        return None
    controls = len(head) - len(head.translate(None, CONTROLS))
    if b"\0" in head or controls > _CONTROL_SHARE * len(head):
        scores = {codec: _spaces_if_text(head, codec) for codec in _WIDE}
        codec = max(_WIDE, key=scores.__getitem__)
        if scores[codec] >= 0:
            return Encoding(codec, 0, Origin.PATTERN)
    return None


def _spaces_if_text(head: bytes, codec: str) -> int:
    """The number of ASCII and East Asian characters that `head` decodes to, or -1 if it is not text. `head`
    may end inside a character.
    """
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head[:_PATTERN_BYTES])
    except UnicodeDecodeError:
        return -1
    spaceless = "".join(text.split())
    if sum(map(str.isprintable, spaceless[:_GLANCE])) < _GLANCE_SHARE * len(spaceless[:_GLANCE]):
        return -1
    printed = len(spaceless) if spaceless.isprintable() else sum(map(str.isprintable, spaceless))
    if not text or "\0" in text or printed < _WIDE_SHARE * len(spaceless):
        return -1
    ascii_count, east_asian = sum(map(str.isascii, text)), len(_EAST_ASIAN.findall(text))
    if len(_ASCII_PAIR.findall(text)) > _PAIR_SHARE * east_asian or _has_odd_nuls(text):
        return -1
    only_east_asian = ascii_count + east_asian == len(spaceless) >= _LEAST_EAST_ASIAN
    return ascii_count + east_asian if only_east_asian or (ascii_count and b"\0" in head) else -1


def _has_odd_nuls(text: str) -> bool:
    """Whether more characters have 0 as their lower byte than text does (one such character in Chinese)."""
    return sum(ord(character) & 0xFF == 0 for character in text) > _ODD_SHARE * len(text) + 1


def _mail_encoding(block: bytes) -> Encoding | None:
    """ISO-2022-JP or ISO-2022-KR, if the block decodes as one without an error."""
    codec = "iso2022_kr" if _KOREAN_MAIL in block else "iso2022_jp_ext"
    if codec == "iso2022_jp_ext" and not _JAPANESE_MAIL.search(block):
        return None
    try:
        codecs.getincrementaldecoder(codec)().decode(block)
    except UnicodeDecodeError:
        return None
    return Encoding(codec, 0, Origin.PATTERN)


def _plausible(head: bytes, before: bytes, window: bytes) -> Encoding:
    """The encoding of `window`, which begins with a non-ASCII byte, follows the ASCII text `before` and is in
    a file that begins with `head`.
    """
    label = declared(head)
    codec = codec_of(label) if label else None
    utf8 = _is_mostly_utf8(window)
    if codec is not None and codec != "utf-8" and _fits(window, codec, certain=not utf8):
        return Encoding(codec, 0, Origin.DECLARED)
    contrary = label if label and codec != "utf-8" else ""
    if utf8:
        return Encoding("utf-8", 0, Origin.UTF8, contrary or "")
    from adamas_cli.documents.guessing import guessed  # most texts do not need it

    found = guessed(before + (window if len(window) < WINDOW_BYTES else _whole_lines(window)))
    if label and not contrary:
        contrary = shown_name("utf-8")
    return Encoding(found, 0, Origin.GUESSED, contrary or "")


def _fits(window: bytes, codec: str, *, certain: bool) -> bool:
    """Whether `window` can be in a declared encoding.

    If it is also valid UTF-8, only an encoding in which most bytes would be wrong is evidence: in a
    single-byte encoding, any bytes are text.
    """
    wide = codec.startswith(("utf-16", "utf-32"))  # then the declaration itself could not have been read
    try:
        text = codecs.getincrementaldecoder(codec)().decode(window)
    except UnicodeDecodeError as error:
        if not certain or wide:
            return False
        text = codecs.getincrementaldecoder(codec)("replace").decode(window)
        return text.count("\ufffd") <= _CONTROL_SHARE * (len(window) - error.start)
    many_bytes = len(text) < len(window)
    return not wide and (certain or many_bytes)


def _whole_lines(window: bytes) -> bytes:
    return window[: window.rfind(b"\n") + 1] or window


def _is_mostly_utf8(window: bytes) -> bool:
    """Whether whole UTF-8 sequences outnumber stray bytes: they rarely occur by chance in other encodings."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(window, final=len(window) < WINDOW_BYTES)
    except UnicodeDecodeError:
        without, sequences = _MULTIBYTE.subn(b"", window)
        return sequences > len(without) - len(_NOT_ASCII.sub(b"", without))
    return True
