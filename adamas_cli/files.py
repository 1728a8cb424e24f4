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
    while True:
        part = file.with_name(f".{file.name}.{secrets.token_hex(8)}{PART}")
        with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE), "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not os.fstat(stream.fileno()).st_nlink:
                continue  # another process took it for a leftover before it was locked
            try:
                yield stream
                stream.flush()
                os.replace(part, file)
            except BaseException:
                with suppress(OSError):
                    part.unlink()
                raise
            return


def files_below(folder: Path) -> Iterator[Path]:
    """Every file of a folder and of those in it, while other processes may add and remove some.

    A folder that is gone when it would be listed is passed over: `Path.rglob` raises.
    """
    for below, _, names in os.walk(folder):
        for name in names:
            yield Path(below, name)


def size_of(path: Path) -> int:
    """The bytes of a file, 0 if it is gone meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def leftovers(root: Path) -> Iterator[Path]:
    """Part files that no process is writing any more, each locked until the next is asked for."""
    for part in files_below(root):
        if not (part.name.startswith(".") and part.name.endswith(PART)):
            continue
        with suppress(OSError), part.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield part
