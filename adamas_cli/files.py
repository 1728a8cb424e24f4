"""Files written completely or not at all, in folders that only their owner can read."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

FOLDER_MODE, FILE_MODE = 0o700, 0o600
PART = ".part"  # the suffix of files that are being written


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, accessible only to the user. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(FOLDER_MODE)


@contextmanager
def appearing(file: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name when the block ends, complete; if the block raises, no file is left.

    The part file is locked while it is written, so that `leftovers` can tell those of killed processes.
    """
    make_folder(file.parent)
    part = file.with_name(f".{file.name}.{secrets.token_hex(8)}{PART}")
    with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE), "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield stream
            stream.flush()
            os.replace(part, file)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def leftovers(root: Path) -> list[Path]:
    """Part files that no process is writing any more."""
    found = []
    for part in root.glob(f"**/.*{PART}"):
        with suppress(OSError), part.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found.append(part)
    return found
