"""Documents that can be read only once, stdin and pipes: copied to a temporary file."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Callable
from typing import IO, BinaryIO

from adamas_cli.documents.archives import kind_inside
from adamas_cli.documents.collection import Reason
from adamas_cli.documents.decoding import HEAD_BYTES
from adamas_cli.documents.document import BLOCK_BYTES, Spool, shown_path
from adamas_cli.documents.examining import Examiner, Found
from adamas_cli.documents.formats.recognize import Format
from adamas_cli.documents.gzipped import Gzipped, compression
from adamas_cli.errors import AdamasError
from adamas_cli.progress import Progress

TakeArchive = Callable[[str, str], None]


def take_pipe(path: str, examiner: Examiner, progress: Progress, take_archive: TakeArchive) -> None:
    """Add the document from a named pipe, `<(command)` or a file of /proc; empty if nobody writes to it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # the open must not wait for a writer
    except OSError:
        examiner.add(path, lambda: Reason.UNREADABLE)
        return
    with open(descriptor, "rb") as stream:
        os.set_blocking(descriptor, True)
        take_stream(path, stream, examiner, progress, take_archive)


def take_stream(
    path: str, stream: BinaryIO, examiner: Examiner, progress: Progress, take_archive: TakeArchive
) -> None:
    """Add the document in `stream`, read to its end; of a binary one, which may be endless, only the first
    block is read. `take_archive` receives an archive's path and name.

    Raises AdamasError if the copy breaks off, for example on a full disk.
    """
    examiner.add(path, lambda: _found(path, stream, examiner, progress, take_archive))


def _found(
    path: str, stream: BinaryIO, examiner: Examiner, progress: Progress, take_archive: TakeArchive
) -> Found | None:
    shown = shown_path(path)
    block = stream.read(BLOCK_BYTES)
    if not block:
        return Reason.EMPTY
    head = block[:HEAD_BYTES]
    kind = examiner.recognized(head, path)
    packed = compression(head) if kind is None else None
    unread = None
    if kind is Format.IMAGE:
        unread = examiner.picture(path, named=True)
    elif kind is None and packed is None:
        unread = examiner.binary(head, path, named=True)
    if unread is not None:
        return unread
    copy = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the document closes it when it is gone
    size = _copied(shown, block, stream, copy.file, progress)
    spool = Spool(copy.file, size)
    weakref.finalize(spool, copy.close)
    if packed is not None and examiner.converts:
        kind = kind_inside(head, spool, size, path)
    if kind is Format.ARCHIVE:
        take_archive(copy.name, path)
        return None
    if packed is not None:
        return examiner.unpacked(path, Gzipped(spool, size, packed), None)
    if kind is not None:
        return examiner.converted(copy.name, path, size, kind, spool)
    return examiner.text(path, spool, size, head, named=True)


def _copied(shown: str, block: bytes, stream: BinaryIO, copy: IO[bytes], progress: Progress) -> int:
    """Write `block` and the rest of `stream`; return the total size in bytes."""
    try:
        with progress.task(f"reading {shown}", None, "bytes") as advance:
            while block:
                copy.write(block)
                advance(len(block))
                block = stream.read(BLOCK_BYTES)
            copy.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # the buffered data fails to be written again
            copy.close()
        raise AdamasError(f"{shown} could not be read to its end: {error.strerror}.", path=shown) from error
    return copy.tell()
