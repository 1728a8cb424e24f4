"""Signs of plain text formats, and names of formats that adamas cannot read."""

from __future__ import annotations

import os
import re

# The header of a mail: fields from its first byte on, up to an empty line.
_FIELD = re.compile(rb"([!-9;-~]{1,76}):[ \t]?[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*(?:\r?\n|\Z)")
_MAIL_SUFFIXES = (".eml", ".mht", ".mhtml")
_PATCHES = (".patch", ".diff")  # `git format-patch` writes mails, which are read as patches
_POSTMARK = re.compile(rb"From \S+ .*\d\d:\d\d.*\d{4}")
_SUBRIP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*\d+[ \t]*\r?\n\d\d?:\d\d:\d\d[,.]\d{1,3} --> \d\d?:\d\d:\d\d[,.]\d{1,3}"
)
_WEBVTT = re.compile(rb"(?:\xef\xbb\xbf)?WEBVTT(?:[ \t\r\n]|\Z)")
_FICTION_BOOK = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).){0,2000}-->\s*)*<FictionBook[\s>]", re.DOTALL
)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

# Document formats without a reader, by suffix and by signature.
_UNREAD_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("azw", "azw3", "chm", "djvu", "doc", "dot", "dwg", "key", "kfx", "lit", "mdb", "mobi", "numbers"),
        *("one", "pages", "parquet", "pps", "ppt", "ps", "pst", "pub", "sqlite", "vsd", "vsdx", "wpd", "wps"),
        *("xps", "7z", "cab", "dmg", "iso", "rar", "zst"),
    )
)
_UNREAD_MAGIC = (
    (b"AT&TFORM", ".djvu"),
    (b"ITSF", ".chm"),
    (b"!BDN", ".pst"),
    (b"%!PS-Adobe", ".ps"),
    (b"7z\xbc\xaf\x27\x1c", ".7z"),
    (b"Rar!\x1a\x07", ".rar"),
    (b"\x28\xb5\x2f\xfd", ".zst"),
    (b"SQLite format 3\0", ".sqlite"),
    (b"PAR1", ".parquet"),
)
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_SHORT = (b"GIF87a", b"GIF89a", b"BM")  # words can begin with these
_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_PALM = slice(60, 68)  # the type of a Palm database, such as a Kindle book


def is_mail(head: bytes, suffix: str) -> bool:
    """Whether it is a mail or a page saved as one: by its fields, and by its name if those are few."""
    if suffix in _PATCHES:
        return False
    names = _field_names(head)
    if suffix in _MAIL_SUFFIXES:
        return bool(names & {b"from", b"to", b"subject", b"date", b"mime-version", b"content-type"})
    return {b"from", b"date"} <= names and bool(names & {b"mime-version", b"message-id", b"received"})


def is_mailbox(head: bytes, suffix: str) -> bool:
    """Whether it is a sequence of mails, each after a line that begins with `From `."""
    first, _, rest = head.partition(b"\n")
    if suffix in _PATCHES or not _POSTMARK.match(first):
        return False
    names = _field_names(rest.lstrip(b"\r\n"))
    return b"from" in names and (suffix == ".mbox" or bool(names & {b"message-id", b"received"}))


def is_subtitles(head: bytes, suffix: str) -> bool:
    """Whether it is SubRip or WebVTT; in UTF-16 only if its name says so."""
    if head.startswith(_UTF16):
        return suffix in (".srt", ".vtt")
    return bool(_SUBRIP.match(head) or _WEBVTT.match(head))


def is_fiction_book(head: bytes) -> bool:
    """Whether it is a FictionBook 2."""
    if head.startswith(_UTF16):
        return "<FictionBook" in head[: len(head) & ~1].decode("utf-16", "replace")
    return bool(_FICTION_BOOK.match(head.removeprefix(b"\xef\xbb\xbf")))


def is_image(head: bytes) -> bool:
    """Whether it is a bitmap picture."""
    return head.startswith(_IMAGES) or _is_webp(head) or (head.startswith(_SHORT) and b"\0" in head[:64])


def is_lfs_pointer(head: bytes, size: int) -> bool:
    """Whether it is a Git LFS pointer to a file that has not been fetched."""
    return size < 1024 and head.startswith(_LFS) and b"\noid sha256:" in head


def is_old_tar(head: bytes) -> bool:
    """Whether it is an old tar file without a signature: by the checksum of its first block."""
    block = head[:512]
    try:
        told = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return len(block) == 512 and told == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def unread_kind(head: bytes, path: str) -> str | None:
    """The suffix of a known format without a reader, for a file that is not text; None for all others."""
    if head[_PALM] == b"BOOKMOBI":
        suffix = os.path.splitext(path)[1].lower()
        return suffix if suffix in (".azw", ".azw3") else ".mobi"
    for magic, suffix in _UNREAD_MAGIC:
        if head.startswith(magic):
            return suffix
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in _UNREAD_SUFFIXES else None


def _is_webp(head: bytes) -> bool:
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def _field_names(head: bytes) -> set[bytes]:
    """The names of a mail's fields in lower case; none unless the head is only fields up to an empty line."""
    names: set[bytes] = set()
    at = 0
    while found := _FIELD.match(head, at):
        names.add(found[1].lower())
        at = found.end()
    cut = len(head) > 4096 and at > len(head) // 2  # the head ends inside a field
    whole = at == len(head) or head.startswith((b"\n", b"\r\n"), at) or cut
    return names if whole else set()
