"""Text compressed with gzip, bzip2 or xz, unpacked block by block."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from adamas_cli.documents.document import BLOCK_BYTES, Content
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError


class Compression(StrEnum):
    """How bytes are compressed."""

    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"


_SIGNS = (
    (re.compile(rb"\x1f\x8b\x08"), Compression.GZIP),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), Compression.BZIP2),
    (re.compile(rb"\xfd7zXZ\0"), Compression.XZ),
)
MAX_RATIO = 200  # unpacked to packed; text stays far below
_ALWAYS_BYTES = 16 * 2**20  # allowed whatever the ratio: logs can be repetitive
_HEADER_AND_TRAILER = 16 + zlib.MAX_WBITS  # zlib's value for the gzip format
_XZ_MEMORY = 256 * 2**20  # xz's own levels need at most 65 MiB
_UNPACKERS: dict[Compression, Callable[[], Any]] = {
    Compression.GZIP: lambda: zlib.decompressobj(_HEADER_AND_TRAILER),
    Compression.BZIP2: bz2.BZ2Decompressor,
    Compression.XZ: lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
}


def compression(head: bytes) -> Compression | None:
    """How a file that begins with `head` is compressed."""
    return next((kind for sign, kind in _SIGNS if sign.match(head)), None)


@dataclass(frozen=True)
class Gzipped:
    """The bytes inside a compressed file of one or more members."""

    packed: Content
    packed_size: int
    compression: Compression = Compression.GZIP

    def blocks(self) -> Iterator[bytes]:
        """The bytes in blocks of at most `BLOCK_BYTES`. Raises UnreadableError for damage and for a bomb,
        when it is reached.
        """
        limit = max(_ALWAYS_BYTES, MAX_RATIO * self.packed_size)
        total = 0
        inflate = _UNPACKERS[self.compression]()
        whole = True
        try:
            for block in self.packed.blocks():
                pending = True
                while block or pending:
                    if inflate.eof:
                        if not block.strip(b"\0"):
                            break  # padding after the last member
                        inflate = _UNPACKERS[self.compression]()
                    text = _unpacked(inflate, block)
                    # Only zlib returns input that it has not consumed yet; the others keep it themselves.
                    block = inflate.unused_data if inflate.eof else getattr(inflate, "unconsumed_tail", b"")
                    whole = inflate.eof
                    pending = not whole and len(text) == BLOCK_BYTES  # it has more output
                    total += len(text)
                    if total > limit:
                        raise UnreadableError(Trouble.TOO_LARGE)
                    if text:
                        yield text
        except _UnpackingError as error:
            raise UnreadableError(Trouble.DAMAGED, str(error)) from error
        if not whole:
            raise UnreadableError(Trouble.DAMAGED, "it ends too early")


class _UnpackingError(Exception):
    """The compressed bytes are damaged."""


def _unpacked(inflate: Any, block: bytes) -> bytes:
    """Decompress one block. Separate from reading, whose errors differ although bz2 raises the same types."""
    try:
        return bytes(inflate.decompress(block, BLOCK_BYTES))
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise _UnpackingError(str(error)) from error
