"""The header of a GGUF file: its keys, and the locations of its tensors.

The gguf package's reader takes seconds for a large vocabulary; this one skips arrays that were not requested.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 16
_MOST_DIMENSIONS = 4
_SHORT_ARRAY = 4096  # numbers; per-layer settings and frequencies are shorter, vocabularies longer
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class DamagedGgufError(ValueError):
    """The file is not a complete GGUF file; the message says why, as a clause."""


@dataclass(frozen=True)
class TensorEntry:
    """The location of a tensor. kind: a GGUF type's name, such as "Q4_K". shape: in torch's order, the
    numbers of a row last. start: its first byte in the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file's description of itself."""

    keys: dict[str, Any]  # scalars, strings, short arrays; for longer arrays their length, unless requested
    tensors: dict[str, TensorEntry]
    end: int  # minimum size of a complete file


def read_header(path: Path, arrays: Collection[str] = ()) -> GgufHeader:
    """The header of the file at `path`, with the values of the array keys in `arrays`.

    Raises DamagedGgufError if it is not a complete GGUF file, OSError if it cannot be read.
    """
    size = path.stat().st_size
    if size < 24:
        raise DamagedGgufError("it is too short to be a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise DamagedGgufError("it does not start like a GGUF file")
        try:
            header = _Reader(data, arrays).header()
        except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
            raise DamagedGgufError("its header is cut short or damaged") from error
    if header.end > size:
        raise DamagedGgufError(f"it is cut short, {size:,} of at least {header.end:,} bytes")
    return header


class _Reader:
    def __init__(self, data: mmap.mmap, arrays: Collection[str]) -> None:
        self._data = data
        self._arrays = arrays
        self._at = len(MAGIC)

    def header(self) -> GgufHeader:
        version, tensors, keys = self._unpack("IQQ")
        if version not in VERSIONS:
            raise DamagedGgufError(f"it is of GGUF version {version}, not {' or '.join(map(str, VERSIONS))}")
        values = dict(self._pair() for _ in range(keys))
        found = [self._tensor() for _ in range(tensors)]
        start = self._data_start(values.get("general.alignment", DEFAULT_ALIGNMENT))
        entries: dict[str, TensorEntry] = {}
        for name, kind, shape, offset in found:
            if name in entries:
                raise DamagedGgufError(f"it has two tensors {name!r}")
            entries[name] = TensorEntry(name, kind, shape, start + offset, _bytes(name, kind, shape))
        end = max((entry.start + entry.bytes for entry in entries.values()), default=start)
        return GgufHeader(values, entries, end)

    def _data_start(self, alignment: Any) -> int:
        if type(alignment) is not int or not 0 < alignment <= _LARGEST_ALIGNMENT:
            raise DamagedGgufError(f"it aligns its tensors to {alignment!r} bytes")
        return -(-self._at // alignment) * alignment

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        if length > len(self._data) - self._at:
            raise DamagedGgufError("its header is cut short or damaged")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _pair(self) -> tuple[str, Any]:
        name = self._string()
        (kind,) = self._unpack("I")
        if kind == _STRING:
            return name, self._string()
        if kind == _ARRAY:
            return name, self._array(whole=name in self._arrays)
        return name, self._unpack(self._scalar(kind))[0]

    def _array(self, whole: bool) -> list[Any] | int:
        element, length = self._unpack("IQ")
        if element == _STRING:
            return self._strings(length, whole)
        layout = self._scalar(element)
        size = length * struct.calcsize(f"<{layout}")
        if size > len(self._data) - self._at:
            raise DamagedGgufError("its header is cut short or damaged")
        if whole or length <= _SHORT_ARRAY:
            return list(self._unpack(f"{length}{layout}"))
        self._at += size
        return int(length)

    def _strings(self, length: int, whole: bool) -> list[str] | int:
        if whole:
            return [self._string() for _ in range(length)]
        for _ in range(length):
            (skipped,) = self._unpack("Q")
            self._at += skipped
        return length

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise DamagedGgufError(f"its header holds values of an unknown kind {kind}")
        return _SCALARS[kind]

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, type, shape and data offset of the next tensor."""
        name = self._string()
        (dimensions,) = self._unpack("I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise DamagedGgufError(f"its tensor {name!r} has {dimensions:,} dimensions")
        lengths = self._unpack(f"{dimensions}Q")
        kind, offset = self._unpack("IQ")
        return name, _kind(kind), lengths[::-1], offset


def _kind(number: int) -> str:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        _ = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise DamagedGgufError(f"it holds tensors of an unknown kind {number}") from error
    return kind.name


def _bytes(name: str, kind: str, shape: tuple[int, ...]) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if shape[-1] % numbers or not prod(shape):
        raise DamagedGgufError(f"its tensor {name!r} of {kind} has rows of {shape[-1]:,} numbers")
    return prod(shape) // numbers * size
