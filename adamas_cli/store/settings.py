"""How documents are stored, and how much space all of them may take by default."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adamas_cli.settings import FEW_BITS, CacheDType

LARGEST_STORE = 20 << 30  # bytes
LARGEST_SHARE = 0.1  # of the disk's free space


@dataclass(frozen=True)
class StoreSettings:
    """Whether documents are stored on disk after reading. limit: bytes of all of them together, 0 for the
    default. dtype: `auto`, as computed, or `int8`. off: neither use nor store any.
    """

    read_only: bool = False
    limit: int = 0
    dtype: Literal["auto", "int8"] = "auto"
    off: bool = False

    def kept(self, cached: CacheDType) -> str:
        """`dtype`, given how the cache has keys and values: those in few bits stay as they are."""
        return "auto" if cached in FEW_BITS else self.dtype

    @property
    def writes(self) -> bool:
        """Whether anything derived from documents may be stored for later runs."""
        return not (self.off or self.read_only)


def stored_format(kept: str, cached: str, dtype: str) -> str:
    """The format that documents are listed with, see `model_facts`: how their keys and values are on disk."""
    if kept != "auto":
        return kept
    return dtype if cached == "auto" else cached


def default_limit(root: Path, held: int) -> int:
    """Bytes that all documents may take: LARGEST_STORE, or a share of the space free without them if less.

    held: bytes they take now.
    """
    folder = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return min(LARGEST_STORE, int((shutil.disk_usage(folder).free + held) * LARGEST_SHARE))
