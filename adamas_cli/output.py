"""Files that are written completely or not at all."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from adamas_cli.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 stream for text; see `replacing_bytes`."""
    with (
        replacing_bytes(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as text,
    ):
        yield text


@contextmanager
def replacing_bytes(path: Path) -> Iterator[BinaryIO]:
    """A stream that replaces `path` when the block ends; if the block raises, `path` is unchanged.

    A link is followed; a device or a pipe is written to directly. Raises UsageError if the file cannot be
    written.
    """
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():
            stream = target.open("wb")
            draft = None
        else:
            draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
            stream = draft.open("xb")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    try:
        with stream:
            yield stream
        if draft is not None:
            if target.exists():
                draft.chmod(target.stat().st_mode & 0o7777)
            os.replace(draft, target)
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
