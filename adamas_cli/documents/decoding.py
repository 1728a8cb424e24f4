"""From bytes of any common encoding to text, in one pass and in bounded memory.

A byte order mark or the pattern of NUL bytes gives UTF-16 and UTF-32 away at the start. Everything else is
ASCII until its first other byte, so the choice waits for that byte and looks at what follows it, however far
into the file it stands: UTF-8 where that fits, else the encoding that charset-normalizer takes it for.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator

HEAD_BYTES = 8 * 1024  # what tells text from binary, as in git
WINDOW_BYTES = 64 * 1024  # what chooses the encoding, from the first byte that is not ASCII
CONTEXT_BYTES = 1024  # ASCII before that byte, which helps to tell languages apart

# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Windows-1250 and the other Latin code pages are left out: on short texts they cannot be told from
# Windows-1252, which is far commoner and agrees with Latin-1 in everything printable.
_LEGACY = ("cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1252", "cp1251", "koi8_r")
_FALLBACK = "cp1252"

_CONTROLS = bytes({*range(0x20), 0x7F} - set(b"\t\n\f\r\b\x1b"))  # never in text; escape codes are, in logs
_CONTROL_SHARE = 0.03
_MAGIC = (
    b"%PDF-",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x7fELF",
    b"BZh",
    b"\xfd7zXZ",
)

# What Shift_JIS text is made of and Windows-1252 text is not: lead bytes of kana and punctuation.
_KANA_LEADS = b"\x81\x82\x83"
# Up to the last byte that is no part of a longer character in any of these encodings, newline or space.
_WHOLE_CHARACTERS = re.compile(rb".*[\x00-\x2f]", re.DOTALL)
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_NOT_ASCII_RUN = re.compile(rb"[\x80-\xff]+")
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Read a stray byte in UTF-8 as Windows-1252: a late `caf\\xe9` in a file that looked like ASCII."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode(_FALLBACK, "replace"), error.end


_STRAY_BYTES = "adamas-windows-1252"
codecs.register_error(_STRAY_BYTES, _as_windows_1252)


def is_binary(head: bytes) -> bool:
    """Whether a file that begins with `head` (its first `HEAD_BYTES`) holds no text.

    Binary means a known signature, a NUL byte outside UTF-16 and UTF-32, or too many control characters.
    """
    if head.startswith(_MAGIC):
        return True
    if _unicode_by_start(head) is not None:
        return False
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return b"\0" in head or controls > _CONTROL_SHARE * len(head)


def decode(blocks: Iterable[bytes], tell: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """The text of `blocks`, piece by piece, whatever their sizes; a piece is no longer than its blocks are.

    A byte order mark is dropped and every line end (CRLF, CR) becomes `\\n`. It never fails: a byte that is
    not UTF-8 in a UTF-8 text is read as Windows-1252, one without meaning in another encoding becomes U+FFFD.
    `tell` is called once with the encoding, before the text that shows it.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for text in _characters(iter(blocks), tell):
        if piece := newlines.decode(text):
            yield piece
    if piece := newlines.decode("", final=True):
        yield piece


def _characters(blocks: Iterator[bytes], tell: Callable[[str], None]) -> Iterator[str]:
    head = _at_least(HEAD_BYTES, b"", blocks)
    known = _unicode_by_start(head)
    if known is not None:
        encoding, mark = known
        tell(encoding)
        yield from _decoded(encoding, head[mark:], blocks)
        return
    before, block = b"", head
    while block:
        if found := _NOT_ASCII.search(block):
            start = found.start()
            before += block[max(0, start - CONTEXT_BYTES) : start]
            yield block[:start].decode("ascii")
            rest = _at_least(WINDOW_BYTES, block[start:], blocks)
            encoding = _plausible(before, rest[:WINDOW_BYTES])
            tell(encoding)
            yield from _decoded(encoding, rest, blocks)
            return
        yield block.decode("ascii")
        before = block[-CONTEXT_BYTES:]
        block = next(blocks, b"")
    tell("ascii")


def _at_least(size: int, block: bytes, blocks: Iterator[bytes]) -> bytes:
    """`block` followed by as many whole blocks as it takes to hold `size` bytes, if there are as many."""
    parts, held = [block], len(block)
    while held < size and (part := next(blocks, None)) is not None:
        parts.append(part)
        held += len(part)
    return b"".join(parts)


def _decoded(encoding: str, first: bytes, rest: Iterator[bytes]) -> Iterator[str]:
    errors = _STRAY_BYTES if encoding == "utf-8" else "replace"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    yield decoder.decode(first)
    for block in rest:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _unicode_by_start(head: bytes) -> tuple[str, int] | None:
    """The Unicode encoding that the start of a file gives away and the bytes of its mark, or None."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    if b"\0" in head:
        for encoding in _WIDE:
            if _is_text(head, encoding):
                return encoding, 0
    return None


def _is_text(head: bytes, encoding: str) -> bool:
    """Whether `head` decodes to printable characters with at least one from ASCII; it may end inside one."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    spaceless = "".join(text.split())
    return spaceless.isprintable() and any(character.isascii() for character in text)


def _plausible(before: bytes, window: bytes) -> str:
    """The encoding of `window`, which begins with a byte that is not ASCII, after the ASCII text `before`."""
    if _is_mostly_utf8(window):
        return "utf-8"
    if _is_western(window):
        return _FALLBACK
    from charset_normalizer import from_bytes  # its import would cost every start of the program

    if len(window) == WINDOW_BYTES and (whole := _WHOLE_CHARACTERS.match(window)):
        window = whole[0]
    best = from_bytes(before + window, cp_isolation=list(_LEGACY)).best()
    return best.encoding if best is not None and best.encoding != "ascii" else _FALLBACK


def _is_mostly_utf8(window: bytes) -> bool:
    """Whether whole UTF-8 sequences outnumber stray bytes: by chance they hardly occur in other encodings."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(window)
    except UnicodeDecodeError:
        without, sequences = _MULTIBYTE.subn(b"", window)
        return sequences > len(without) - len(_NOT_ASCII.sub(b"", without))
    return True


def _is_western(window: bytes) -> bool:
    """Whether accented letters stand alone among ASCII ones: other scripts fill words and come in pairs.

    charset-normalizer is not asked about these: it takes one copyright sign in English text for Japanese.
    """
    foreign = b"".join(_NOT_ASCII.findall(window))
    runs = len(_NOT_ASCII_RUN.findall(window))
    kana = len(foreign) - len(foreign.translate(None, _KANA_LEADS))
    return 2 * len(foreign) < 3 * runs and 4 * kana < len(foreign)
