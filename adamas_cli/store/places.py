"""Where prefilled documents live on disk, who may read them, and how processes take turns.

entries/ holds a small JSON manifest for each document, blocks/ the keys and values that manifests name. Text
can be guessed from keys and values, so only their owner may read them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adamas_cli.folders import cache_directory

FORMAT = 2  # of blocks and manifests, and of what their keys hash; another one is another store
FOLDER_MODE, FILE_MODE = 0o700, 0o600
PART = ".part"  # the suffix of files that are being written


def documents_directory() -> Path:
    """The folder of prefilled documents: `ADAMAS_DOC_CACHE`, or a part of this tool's cache."""
    chosen = os.environ.get("ADAMAS_DOC_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return cache_directory() / "documents"


def entries_directory(root: Path) -> Path:
    """The folder of manifests."""
    return root / "entries"


def blocks_directory(root: Path) -> Path:
    """The folder of keys and values."""
    return root / "blocks"


def block_file(root: Path, key: str) -> Path:
    """The file of the block with this key."""
    return blocks_directory(root) / key[:2] / f"{key}.safetensors"


def block_of(key: str) -> str:
    """The block that a key of blocks or codes belongs to."""
    return key.partition("-")[0]


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, for nobody but the user. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(FOLDER_MODE)


@contextmanager
def appearing(file: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name when the block ends, whole; where that raises, none is left behind.

    While it is written its part is locked, by which `leftovers` knows those of processes that were killed.
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
    """Parts that no process is writing any more."""
    found = []
    for part in root.glob(f"**/.*{PART}"):
        with suppress(OSError), part.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found.append(part)
    return found


@contextmanager
def removing(root: Path) -> Iterator[None]:
    """Hold the only right to remove documents. Raises OSError where the folder cannot be written."""
    from filelock import FileLock

    with FileLock(root / ".lock", mode=FILE_MODE):
        yield
