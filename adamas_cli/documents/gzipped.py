"""Text that is compressed with gzip, unpacked block by block."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from adamas_cli.documents.document import BLOCK_BYTES, Content
from adamas_cli.documents.formats.trouble import Trouble, UnreadableError

MAGIC = b"\x1f\x8b\x08"
MAX_RATIO = 200  # unpacked to packed; text stays far below
_ALWAYS_BYTES = 16 * 2**20  # may be unpacked whatever the ratio: logs can be dull
_HEADER_AND_TRAILER = 16 + zlib.MAX_WBITS  # zlib's word for the gzip format


@dataclass(frozen=True)
class Gzipped:
    """The bytes inside a gzip file, of one member or several."""

    packed: Content
    packed_size: int

    def blocks(self) -> Iterator[bytes]:
        """The bytes in blocks of at most `BLOCK_BYTES`. Raises UnreadableError for damage and for a bomb,
        at its place.
        """
        limit = max(_ALWAYS_BYTES, MAX_RATIO * self.packed_size)
        total = 0
        inflate = zlib.decompressobj(_HEADER_AND_TRAILER)
        whole = True
        try:
            for block in self.packed.blocks():
                pending = True
                while block or pending:
                    if inflate.eof:
                        if not block.strip(b"\0"):
                            break  # padding behind the last member
                        inflate = zlib.decompressobj(_HEADER_AND_TRAILER)
                    text = inflate.decompress(block, BLOCK_BYTES)
                    block = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
                    whole = inflate.eof
                    pending = not whole and len(text) == BLOCK_BYTES  # zlib holds more back
                    total += len(text)
                    if total > limit:
                        raise UnreadableError(Trouble.TOO_LARGE)
                    if text:
                        yield text
        except zlib.error as error:
            raise UnreadableError(Trouble.DAMAGED, str(error)) from error
        if not whole:
            raise UnreadableError(Trouble.DAMAGED, "it ends too early")
