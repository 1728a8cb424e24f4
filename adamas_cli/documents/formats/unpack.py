"""Archives of files (.zip, .tar, also compressed), unpacked into a folder."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

from adamas_cli.documents.formats.trouble import Trouble, UnreadableError
from adamas_cli.documents.parts import Part
from adamas_cli.documents.remark import Remark

MAX_RATIO = 200  # unpacked to packed; text stays far below
_ALWAYS_BYTES = 64 * 2**20  # may be unpacked whatever the ratio
_REPORTED = 1000  # members between progress reports
_DRIVE = re.compile(r"[a-zA-Z]:")
_BLOCK = 2**20
_NAME_ERRORS = (
    *(errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOENT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file where another one needs a folder
)

# What a skipped member is counted as; the first four are the same as in a folder.
TOO_LARGE = "over `max_file_size`"
LINK = "symlinked"
SAME = "read under another name"
SPECIAL = "special (device, pipe or socket)"
OUTSIDE = "of an archive, with names that lead out of it"
UNNAMEABLE = "of an archive, with names that no file can have"


def read(path: str, *, into: str, largest: int | None, total: int, most: int) -> Iterator[Part | Remark]:
    """Unpack the archive into the empty folder `into`. The parts are empty; skipped members are counted.

    largest: size in bytes of the largest file to unpack. total: bytes of all files together. most: maximum
    number of members. Raises UnreadableError for a bomb, and what zipfile and tarfile raise for damaged
    archives.
    """
    packed = os.path.getsize(path)
    limit = min(total, max(_ALWAYS_BYTES, MAX_RATIO * packed))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    unpacking = _Unpacking(into, largest, limit)
    members = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)
    try:
        for number, member in enumerate(members, start=1):
            if number > most:
                raise UnreadableError(Trouble.TOO_LARGE, f"more than {most:,} files")
            if isinstance(member, Remark):
                yield member
            elif left_out := unpacking.take(*member):
                yield Remark(left_out)
            if number % _REPORTED == 0:
                yield Part("")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


_Member = tuple[str, int, Callable[[], IO[bytes] | None]]


class _Unpacking:
    """Writes members below a folder, as long as they fit."""

    def __init__(self, into: str, largest: int | None, left: int) -> None:
        self._into = into
        self._largest = largest
        self._left = left

    def take(self, name: str, size: int, opened: Callable[[], IO[bytes] | None]) -> str | None:
        """Write a file, or return why it is not written. Raises UnreadableError if the limit is exceeded."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts or name.startswith("/") or _DRIVE.match(name) or "\0" in name or not parts:
            return OUTSIDE
        if ".git" in parts:  # it is not text, and its settings are foreign
            return None
        if self._largest is not None and size > self._largest:
            return TOO_LARGE
        target = os.path.join(self._into, *parts)
        source = opened()
        if source is None:
            return SPECIAL
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with source, open(target, "wb") as file:
                while block := source.read(_BLOCK):
                    self._left -= len(block)
                    if self._left < 0:
                        raise UnreadableError(Trouble.TOO_LARGE)
                    file.write(block)
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            return UNNAMEABLE
        return None


def _zip_members(path: str) -> Iterator[_Member | Remark]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            mode = member.external_attr >> 16
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                yield Remark(Trouble.ENCRYPTED)
            elif stat.S_ISLNK(mode):
                yield Remark(LINK)
            else:
                yield _zip_name(member), member.file_size, partial(archive.open, member)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name; many names are UTF-8 without being marked as such."""
    if member.flag_bits & 0x800:
        return member.filename
    raw = member.filename.encode("cp437", "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return member.filename


def _tar_members(path: str) -> Iterator[_Member | Remark]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            if member.issym() or member.islnk():
                yield Remark(LINK if member.issym() else SAME)
            elif not member.isfile():
                yield Remark(SPECIAL)
            else:
                yield member.name, member.size, partial(archive.extractfile, member)
