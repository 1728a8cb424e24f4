"""Where prefilled documents are stored, who may read them, and how processes take turns.

entries/ holds a small JSON manifest for each document, blocks/ the keys and values that manifests name. Text
can be guessed from keys and values, so only their owner may read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adamas_cli.files import FILE_MODE
from adamas_cli.folders import cache_directory

FORMAT = 3  # of blocks and manifests, and of what their keys hash; another format is another store


def documents_directory() -> Path:
    """The folder of prefilled documents: `ADAMAS_DOC_CACHE`, or part of this tool's cache."""
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
    """The block that a key, of a block or codes, belongs to."""
    return key.partition("-")[0]


@contextmanager
def removing(root: Path) -> Iterator[None]:
    """Hold the exclusive right to remove documents. Raises OSError if the folder cannot be written."""
    from filelock import FileLock

    with FileLock(root / ".lock", mode=FILE_MODE):
        yield
