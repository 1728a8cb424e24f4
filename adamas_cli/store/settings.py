"""How documents are kept, and how much room all of them may take by default."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

LARGEST_STORE = 20 << 30  # bytes
LARGEST_SHARE = 0.1  # of the disk's free space


@dataclass(frozen=True)
class StoreSettings:
    """limit: bytes of all documents together, None for the default. dtype: `auto`, as computed, or `int8`."""

    read_only: bool = False
    limit: int | None = None
    dtype: str = "auto"


def default_limit(root: Path, held: int) -> int:
    """Bytes that all documents may take: LARGEST_STORE, or a share of what is free without them if less.

    held: bytes that they take now.
    """
    folder = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return min(LARGEST_STORE, int((shutil.disk_usage(folder).free + held) * LARGEST_SHARE))
