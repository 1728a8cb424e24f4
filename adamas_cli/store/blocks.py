"""One block on disk: a safetensors file whose metadata seals its header and has a checksum for each tensor.

The format is https://huggingface.co/docs/safetensors: the length of a JSON header, the header, the tensors'
bytes. It is read and written here piece by piece, because on a CPU keys and values are parts of a longer
buffer, head by head.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from adamas_cli.store.parts import state_names
from adamas_cli.store.places import FORMAT

LENGTH_BYTES = 8
ALIGNMENT = 4096  # of the data in the file: a page
LARGEST_HEADER = 16 << 20
READ_BYTES = 8 << 20  # at once, when a file is only checked
ITEM_BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
_NO_CHECKSUM = "0" * 16


class DamagedError(Exception):
    """A damaged or foreign block; the message is a clause."""


@dataclass(frozen=True)
class Stored:
    """The place of a tensor: number format, shape, first byte in the file, and checksum."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    checksum: str


@dataclass(frozen=True)
class Header:
    """A block: its key, first token, token count, and its tensors in file order."""

    key: str
    start: int
    tokens: int
    tensors: dict[str, Stored]


class BlockWriter:
    """Writes one block to a stream: first the shapes, then each tensor in the same order, then `seal`.

    shapes: number format and shape of each tensor by its name.
    """

    def __init__(
        self,
        stream: BinaryIO,
        key: str,
        start: int,
        tokens: int,
        shapes: Mapping[str, tuple[str, Sequence[int]]],
    ) -> None:
        self._stream = stream
        self._facts = {"format": str(FORMAT), "key": key, "start": str(start), "tokens": str(tokens)}
        self._table: dict[str, dict[str, Any]] = {}
        end = 0
        for name, (dtype, shape) in shapes.items():
            begin, end = end, end + _bytes(dtype, shape)
            self._table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        self._checksums: dict[str, str] = {}
        stream.write(self._header(dict.fromkeys(self._table, _NO_CHECKSUM)))

    def write(self, name: str, pieces: Iterable[Any]) -> None:
        """The bytes of one tensor, as buffers."""
        checksum = xxhash.xxh3_64()
        for piece in pieces:
            checksum.update(piece)
            self._stream.write(piece)
        self._checksums[name] = checksum.hexdigest()

    def seal(self) -> None:
        """Write the checksums, which completes the block."""
        self._stream.seek(0)
        self._stream.write(self._header(self._checksums))

    def _header(self, checksums: dict[str, str]) -> bytes:
        """The header; its length does not depend on the checksums."""
        metadata = {**self._facts, "checksums": json.dumps(checksums)}
        metadata["seal"] = _seal(metadata, self._table)
        text = json.dumps({"__metadata__": metadata, **self._table}).encode()
        text += b" " * (-(len(text) + LENGTH_BYTES) % ALIGNMENT)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_header(descriptor: int) -> Header:
    """The header of an open block. Raises DamagedError if it, or the file's length, is wrong."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, LENGTH_BYTES, 0), "little")
    if not 0 < length <= min(size, LARGEST_HEADER):
        raise DamagedError("its header is cut off")
    try:
        table: dict[str, Any] = json.loads(os.pread(descriptor, length, LENGTH_BYTES))
        metadata = table.pop("__metadata__")
        if metadata["format"] != str(FORMAT):
            raise DamagedError(f"it has format {metadata['format'][:8]}, this version reads {FORMAT}")
        if metadata.pop("seal") != _seal(metadata, table):
            raise DamagedError("its header is damaged")
        checksums = json.loads(metadata["checksums"])
        begin = LENGTH_BYTES + length
        tensors = {
            name: Stored(
                entry["dtype"],
                tuple(entry["shape"]),
                begin + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
                checksums[name],
            )
            for name, entry in table.items()
        }
        header = Header(metadata["key"], int(metadata["start"]), int(metadata["tokens"]), tensors)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("its header is damaged") from error
    if size != max((stored.offset + stored.bytes for stored in tensors.values()), default=begin):
        raise DamagedError("it is cut off")
    return header


def read_tensor(descriptor: int, stored: Stored, pieces: Sequence[Any]) -> None:
    """Fill writable buffers, together as large as the tensor, from an open block.

    Raises DamagedError if bytes are missing or the checksum differs, OSError if reading fails.
    """
    if pieces and os.preadv(descriptor, pieces, stored.offset) != stored.bytes:
        raise DamagedError("it is cut off")
    checksum = xxhash.xxh3_64()
    for piece in pieces:
        checksum.update(piece)
    if checksum.hexdigest() != stored.checksum:
        raise DamagedError("a checksum differs")


def has_states(file: Path) -> bool:
    """Whether reading can continue after this block; False for a damaged one."""
    return bool(state_names(tensor_names(file)))


def tensor_names(file: Path) -> set[str]:
    """The names of a block's tensors; empty if it cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return set()
    try:
        return set(read_header(descriptor).tensors)
    except (DamagedError, OSError):
        return set()
    finally:
        os.close(descriptor)


def verify(file: Path, key: str) -> str | None:
    """The fault of the block with this key, as a clause; None if there is none. Reads the whole file."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    try:
        header = read_header(descriptor)
        if header.key != key:
            return "it is another block"
        buffer = memoryview(bytearray(READ_BYTES))
        for stored in header.tensors.values():
            checksum, at, end = xxhash.xxh3_64(), stored.offset, stored.offset + stored.bytes
            while at < end:
                got = os.preadv(descriptor, [buffer[: min(READ_BYTES, end - at)]], at)
                if got == 0:
                    return "it is cut off"
                checksum.update(buffer[:got])
                at += got
            if checksum.hexdigest() != stored.checksum:
                return "a checksum differs"
    except DamagedError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    finally:
        os.close(descriptor)
    return None


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    size = ITEM_BYTES[dtype]
    for length in shape:
        size *= length
    return size


def _seal(metadata: Mapping[str, str], table: Mapping[str, Any]) -> str:
    """A checksum of everything in a header except itself."""
    return xxhash.xxh3_64(json.dumps([sorted(metadata.items()), table]).encode()).hexdigest()
