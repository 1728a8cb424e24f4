"""What the store knows of each document: a small JSON manifest that names its blocks.

Answers do not depend on manifests: blocks are found by their keys. A manifest is for the user, and for
choosing what to remove. Its modification time is the document's last use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from adamas_cli.files import appearing, leftovers
from adamas_cli.store.places import FORMAT, block_of, blocks_directory, entries_directory, removing

ID_DIGITS = 12  # of the key of a document's last block


@dataclass(frozen=True)
class Entry:
    """One document, or several read together, as read by one model. dense: leading blocks that were read
    densely, the others sparsely; None if all were.
    """

    model: str
    dtype: str
    device: str
    documents: list[str]
    tokens: int
    block_tokens: int
    blocks: list[str]  # keys
    created: float = 0.0  # seconds since 1970, like `used`
    dense: int | None = None
    used: float = field(default=0.0, compare=False)

    @property
    def id(self) -> str:
        """The user's name for it: changes with the content, not with the documents' names."""
        return self.blocks[-1][:ID_DIGITS]

    @property
    def read(self) -> str:
        """How it was read: `dense`, `sparse`, or sparse from a token on."""
        if self.dense is None or self.dense >= len(self.blocks):
            return "dense"
        return f"sparse from {self.dense * self.block_tokens:,}" if self.dense else "sparse"


@dataclass(frozen=True)
class OnDisk:
    """An entry and how much of it is on disk: bytes, and complete blocks from its beginning."""

    entry: Entry
    bytes: int
    whole: int

    @property
    def tokens(self) -> int:
        """Tokens that need not be read again."""
        return min(self.entry.tokens, self.whole * self.entry.block_tokens)


def save(root: Path, entry: Entry) -> None:
    """Write the manifest, or record that the document was used. Raises OSError."""
    file = _file(root, entry.id)
    known = _read(file)
    if known == entry:
        os.utime(file)
        return
    written = asdict(entry) | {"format": FORMAT}
    del written["used"]
    with appearing(file) as stream:
        stream.write(json.dumps(written, ensure_ascii=False, indent=1).encode())


def entries(root: Path) -> list[Entry]:
    """All documents, the last used first; damaged manifests are skipped."""
    found = (_read(file) for file in entries_directory(root).glob("*.json"))
    return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.used)


def on_disk(root: Path) -> list[OnDisk]:
    """All documents, with how much of each is on disk."""
    sizes = _sizes(root)
    return [_held(entry, sizes) for entry in entries(root)]


def _held(entry: Entry, sizes: Mapping[str, int]) -> OnDisk:
    whole = next((index for index, key in enumerate(entry.blocks) if key not in sizes), len(entry.blocks))
    own = set(entry.blocks)
    return OnDisk(entry, sum(size for key, size in sizes.items() if block_of(key) in own), whole)


def total_bytes(root: Path) -> int:
    """Bytes of all blocks on disk."""
    return sum(_sizes(root).values())


def remove(root: Path, ids: Sequence[str]) -> int:
    """Remove documents, and blocks that no other document shares; returns the bytes freed. Raises OSError."""
    with removing(root):
        for id in ids:
            _file(root, id).unlink(missing_ok=True)
        return _remove_unnamed(root)


def prune(root: Path, limit: int, keep: str | None = None) -> tuple[list[Entry], int]:
    """Remove documents, the least recently used first and never `keep`, until the rest takes `limit` bytes.

    Returns the removed documents and the bytes freed, including blocks that no document names. Raises
    OSError.
    """
    if not root.is_dir():
        return [], 0
    with removing(root):
        freed = _remove_unnamed(root)
        removed: list[Entry] = []
        total = total_bytes(root)
        for entry in reversed(entries(root)):
            if total <= limit:
                break
            if entry.id == keep:
                continue
            _file(root, entry.id).unlink(missing_ok=True)
            removed.append(entry)
            gone = _remove_unnamed(root)
            total, freed = total - gone, freed + gone
    return removed, freed


def _remove_unnamed(root: Path) -> int:
    named = {key for entry in entries(root) for key in entry.blocks}
    unnamed = (file for file in stored_files(root) if block_of(file.stem) not in named)
    freed = 0
    for file in chain(leftovers(root), unnamed):
        with suppress(FileNotFoundError):
            freed += file.stat().st_size
            file.unlink()
    return freed


def stored_files(root: Path) -> Iterator[Path]:
    """The files of all blocks and codes; the stem is the key."""
    return blocks_directory(root).glob("*/[!.]*.safetensors")


def _sizes(root: Path) -> dict[str, int]:
    sizes = {}
    for file in stored_files(root):
        with suppress(FileNotFoundError):
            sizes[file.stem] = file.stat().st_size
    return sizes


def _file(root: Path, id: str) -> Path:
    return entries_directory(root) / f"{id}.json"


def _read(file: Path) -> Entry | None:
    """The manifest, or None if there is none this version reads."""
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        if written.pop("format") != FORMAT:
            return None
        entry = Entry(**written, used=file.stat().st_mtime)
        whole = entry.blocks and all(isinstance(key, str) for key in entry.blocks)
        return entry if whole and file.stem == entry.id else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
