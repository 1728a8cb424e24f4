"""The names of a folder's files, which show the model the repository before its contents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adamas_cli.documents.document import BLOCK_BYTES, Document, shown_path
from adamas_cli.documents.encodings import Encoding
from adamas_cli.documents.surveying import Reading


@dataclass(frozen=True)
class Written:
    """Bytes made by adamas."""

    content: bytes

    def blocks(self) -> Iterator[bytes]:
        """The bytes in blocks."""
        for start in range(0, len(self.content), BLOCK_BYTES):
            yield self.content[start : start + BLOCK_BYTES]


def tree(folder: str, paths: Iterable[str]) -> Document:
    """A document of the names in `paths` (relative to `folder`, with `/`), indented below their folders.

    It holds only names, so that a changed file does not change the text before it.
    """
    shown = shown_path(folder)
    lines = [f"{shown}/"]
    above: list[str] = []
    for path in paths:
        *folders, name = path.split("/")
        common = next(
            (depth for depth, pair in enumerate(zip(above, folders, strict=False)) if pair[0] != pair[1]),
            min(len(above), len(folders)),
        )
        for depth in range(common, len(folders)):
            lines.append(f"{'  ' * (depth + 1)}{shown_path(folders[depth])}/")
        lines.append(f"{'  ' * (len(folders) + 1)}{shown_path(name)}")
        above = folders
    content = "\n".join([*lines, ""]).encode("utf-8", "replace")
    return Document(f"{shown} (file tree)", len(content), Written(content), Reading(Encoding("utf-8")))
