"""Small mails, including Outlook's, whose container is written by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from email.policy import SMTP

Tree = Mapping[str, "bytes | Tree"]
_FREE, _END, _FAT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
_SECTOR, _SMALL_SECTOR, _SMALL_STREAM = 512, 64, 4096
_STRING, _BINARY, _INTEGER = 0x001F, 0x0102, 0x0003


def mail(
    text: str = "See you at nine.",
    *,
    page: str | None = None,
    attachments: Sequence[tuple[str, bytes]] = (),
    mails: Sequence[EmailMessage] = (),
    **fields: str,
) -> EmailMessage:
    """A mail with the fields that every mail has; `fields` adds to them or replaces them."""
    message = EmailMessage(SMTP)
    standard = {
        "From": "Ada <ada@example.org>",
        "To": "Bob <bob@example.org>",
        "Subject": "Größe und Preis",
        "Date": "Mon, 01 Jun 2026 10:00:00 +0000",
        "Message-ID": "<1@example.org>",
    }
    for name, value in (standard | fields).items():
        message[name.replace("_", "-")] = value
    message.set_content(text)
    if page is not None:
        message.add_alternative(page, subtype="html")
    for name, content in attachments:
        message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    for inner in mails:
        message.add_attachment(inner)
    return message


def compound(tree: Tree) -> bytes:
    """A compound file (OLE) of these streams and storages."""
    entries: list[tuple[str, int, int, int, int, int]] = []  # name, kind, child, sibling, start, size
    large, small = _Chains(_SECTOR), _Chains(_SMALL_SECTOR)

    def add(content: Tree) -> int:
        first = _FREE
        for name, value in content.items():
            if isinstance(value, bytes):
                chains = small if len(value) < _SMALL_STREAM else large
                row = (name, 2, _FREE, first, chains.add(value), len(value))
            else:
                row = (name, 1, add(value), first, 0, 0)
            entries.append(row)
            first = len(entries)  # the root comes first
        return first

    child = add(tree)
    stream = bytes(small.data)
    rows = [("Root Entry", 5, child, _FREE, large.add(stream), len(stream)), *entries]
    small_fat_sectors = -(-len(small.links) * 4 // _SECTOR)
    small_fat = large.add(struct.pack(f"<{len(small.links)}I", *small.links), filler=b"\xff")
    directory = large.add(b"".join(_directory_entry(*row) for row in rows))
    fat_sectors = 1
    while fat_sectors * 128 < len(large.links) + fat_sectors:
        fat_sectors += 1
    first_fat = len(large.links)
    fat = [*large.links, *[_FAT] * fat_sectors]
    fat += [_FREE] * (fat_sectors * 128 - len(fat))
    header = struct.pack(
        "<8s16xHHHHH6x9I109I",
        *(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0x3E, 3, 0xFFFE, 9, 6),
        *(0, fat_sectors, directory, 0, _SMALL_STREAM, small_fat, small_fat_sectors, _END, 0),
        *[*range(first_fat, first_fat + fat_sectors), *[_FREE] * (109 - fat_sectors)],
    )
    return header + bytes(large.data) + struct.pack(f"<{len(fat)}I", *fat)


class _Chains:
    """Streams in sectors, and for each sector the number of the next one."""

    def __init__(self, sector: int) -> None:
        self.data = bytearray()
        self.links: list[int] = []
        self._sector = sector

    def add(self, content: bytes, filler: bytes = b"\0") -> int:
        """The number of the stream's first sector."""
        start = len(self.links)
        count = -(-len(content) // self._sector)
        if not count:
            return _END
        self.data += content + filler * (-len(content) % self._sector)
        self.links += [*range(start + 1, start + count), _END]
        return start


def outlook(
    subject: str, body: str = "", page: str = "", attachments: Sequence[tuple[str, bytes]] = ()
) -> bytes:
    """A mail as Outlook saves it."""
    values: list[tuple[int, int, bytes]] = [
        (0x0037, _STRING, subject.encode("utf-16-le")),
        (0x0C1A, _STRING, "Ada".encode("utf-16-le")),
        (0x0C1F, _STRING, "ada@example.org".encode("utf-16-le")),
        (0x0E04, _STRING, "Bob; Carl".encode("utf-16-le")),
    ]
    if body:
        values.append((0x1000, _STRING, body.encode("utf-16-le")))
    if page:
        values.append((0x1013, _BINARY, page.encode()))
    tree: dict[str, bytes | Tree] = dict(
        _properties(values, struct.pack("<8x4I8x", 0, 0, 0, len(attachments)))
    )
    for number, (name, content) in enumerate(attachments):
        attached = [(0x3707, _STRING, name.encode("utf-16-le")), (0x3701, _BINARY, content)]
        tree[f"__attach_version1.0_#{number:08X}"] = _properties(attached, bytes(8))
    return compound(tree)


def _properties(values: Sequence[tuple[int, int, bytes]], header: bytes) -> Tree:
    stream = header
    streams: dict[str, bytes | Tree] = {}
    for number, kind, value in values:
        stream += struct.pack("<HHIII", kind, number, 6, len(value), 0)
        streams[f"__substg1.0_{number:04X}{kind:04X}"] = value
    return {"__properties_version1.0": stream, **streams}


def _directory_entry(name: str, kind: int, child: int, sibling: int, start: int, size: int) -> bytes:
    encoded = name.encode("utf-16-le")
    return struct.pack(
        "<64sHBBIII16xI8x8xIII", encoded, len(encoded) + 2, kind, 1, _FREE, sibling, child, 0, start, size, 0
    )
