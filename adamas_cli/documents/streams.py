"""Documents that can be read only once, stdin and pipes: copied to a temporary file, to be read again."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from typing import BinaryIO

from adamas_cli.documents.collection import Reason
from adamas_cli.documents.decoding import HEAD_BYTES, is_binary
from adamas_cli.documents.document import BLOCK_BYTES, Document, Spool, shown_path
from adamas_cli.errors import AdamasError
from adamas_cli.progress import Progress


def read_pipe(path: str, progress: Progress) -> Document | Reason:
    """The document from a named pipe, `<(command)` or a file of /proc; a pipe without a writer is empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # the open must not wait for a writer
    except OSError:
        return Reason.UNREADABLE
    with open(descriptor, "rb") as stream:
        os.set_blocking(descriptor, True)
        return read_stream(path, stream, progress)


def read_stream(path: str, stream: BinaryIO, progress: Progress) -> Document | Reason:
    """The document in `stream`, read to its end; a binary one, which may be endless, only to its first block.

    Raises AdamasError when the copy breaks off, such as on a full disk.
    """
    shown = shown_path(path)
    try:
        block = stream.read(BLOCK_BYTES)
    except OSError:
        return Reason.UNREADABLE
    if not block:
        return Reason.EMPTY
    if is_binary(block[:HEAD_BYTES]):
        return Reason.BINARY
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the document closes it when it is gone
    try:
        with progress.task(f"reading {shown}", None, "bytes") as advance:
            while block:
                copy.write(block)
                advance(len(block))
                block = stream.read(BLOCK_BYTES)
            copy.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # what could not be written before fails again
            copy.close()
        raise AdamasError(f"{shown} could not be read to its end: {error.strerror}.", path=shown) from error
    spool = Spool(copy, copy.tell())
    weakref.finalize(spool, copy.close)
    return Document(shown, spool.size, spool)
