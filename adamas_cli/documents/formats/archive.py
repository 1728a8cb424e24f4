"""Zip archives of unknown origin, such as EPUB, DOCX and ODT files."""

from __future__ import annotations

import zipfile
from zipfile import ZipFile

from adamas_cli.documents.formats.trouble import Trouble, UnreadableError

MAX_MEMBERS = 20_000
MAX_TEXT_BYTES = 256 * 2**20  # unpacked, of all members that can hold text
MAX_RATIO = 200  # unpacked to packed; XML of real books and letters stays below 50
_SMALL_BYTES = 2**20  # below this size the ratio means nothing
_TEXT_SUFFIXES = (".xml", ".rels", ".html", ".xhtml", ".htm", ".opf", ".ncx")


def open_archive(path: str) -> ZipFile:
    """Open an archive after its directory shows that it is not a bomb: zipfile never unpacks more of a member
    than the directory says. Raises UnreadableError.
    """
    try:
        archive = ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UnreadableError(Trouble.DAMAGED, str(error)) from error
    members = archive.infolist()
    text = [member for member in members if member.filename.lower().endswith(_TEXT_SUFFIXES)]
    large = [member for member in text if member.file_size > _SMALL_BYTES]
    trouble = None
    if any(member.flag_bits & 1 for member in members):
        trouble = Trouble.ENCRYPTED
    elif (
        len(members) > MAX_MEMBERS
        or sum(member.file_size for member in text) > MAX_TEXT_BYTES
        or any(member.file_size > MAX_RATIO * member.compress_size for member in large)
    ):
        trouble = Trouble.TOO_LARGE
    if trouble is not None:
        archive.close()
        raise UnreadableError(trouble)
    return archive
