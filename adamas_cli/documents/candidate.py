"""A path that may become a document, and its bytes."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from adamas_cli.documents.archives import Folder
from adamas_cli.documents.decoding import HEAD_BYTES
from adamas_cli.documents.document import BLOCK_BYTES
from adamas_cli.documents.generated import Origins


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path and its own status.

    `folder`: the named folder or archive that contains it; None for a file that the user named itself, which
    is read whatever its size and origin. `origins`: the origins of the files below that folder, if they
    count. `holder`: deletes the file once nothing refers to it.
    """

    path: str
    status: os.stat_result
    folder: Folder | None = None
    origins: Origins | None = None
    holder: object | None = None

    @property
    def named(self) -> bool:
        """Whether the user named the file itself."""
        return self.folder is None

    @property
    def below(self) -> str:
        """Its path relative to `folder`."""
        return self.path[len(self.folder.path if self.folder else "") :].lstrip("/")

    def blocks(self) -> Generator[bytes]:
        """The file's bytes, up to its size when found; fewer if it shrinks meanwhile. Raises OSError."""
        size = self.status.st_size
        # O_NONBLOCK: a pipe that replaced the file must not block.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            while size and (block := os.read(descriptor, min(size, BLOCK_BYTES))):
                size -= len(block)
                yield block
        finally:
            os.close(descriptor)

    def head_after_hole(self) -> bytes:
        """The first bytes after the leading NUL bytes.

        A log starts with NUL bytes if it was emptied while its program went on writing at the old offset.
        """
        with closing(self.blocks()) as blocks:
            return next((text[:HEAD_BYTES] for block in blocks if (text := block.lstrip(b"\0"))), b"")
