"""Reads what stands before the tensors of a GGUF file: its keys, and where its tensors lie.

transformers' reader refuses files with a quantization it cannot keep packed, and the gguf package's takes
seconds for a large vocabulary; this one skips the arrays.
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
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class DamagedGgufError(ValueError):
    """The file is no GGUF file, or not a whole one; the message says why, as half a sentence."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    keys: dict[str, Any]  # scalars and strings; of an array its length, or the values if it was asked for
    tensors: int
    parameters: int  # elements of all tensors together
    end: int  # bytes that a whole file has at least


def read_header(path: Path, arrays: Collection[str] = ()) -> GgufHeader:
    """The header of the file at `path`, with the values of the keys that `arrays` names.

    Raises DamagedGgufError if it is not a whole GGUF file, OSError if it cannot be read.
    """
    size = path.stat().st_size
    if size < 24:
        raise DamagedGgufError("it is too short to be a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != MAGIC:
            raise DamagedGgufError("it does not start as a GGUF file does")
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
        shapes = [self._tensor() for _ in range(tensors)]
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        start = -(-self._at // alignment) * alignment
        end = start + max((offset + length for _, offset, length in shapes), default=0)
        return GgufHeader(values, tensors, sum(elements for elements, _, _ in shapes), end)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _pair(self) -> tuple[str, Any]:
        name = self._string()
        (kind,) = self._unpack("I")
        return name, self._value(kind, whole=name in self._arrays)

    def _value(self, kind: int, whole: bool) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._unpack(self._scalar(kind))[0]
        element, length = self._unpack("IQ")
        if whole:
            return [self._value(element, whole) for _ in range(length)]
        if element == _STRING:
            for _ in range(length):
                (skipped,) = self._unpack("Q")
                self._at += skipped
        elif element == _ARRAY:
            for _ in range(length):
                self._value(element, whole)
        else:
            self._at += length * struct.calcsize(f"<{self._scalar(element)}")
        return length

    def _scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise DamagedGgufError(f"its header holds values of an unknown kind {kind}")
        return _SCALARS[kind]

    def _tensor(self) -> tuple[int, int, int]:
        """How many elements the next tensor has, where it starts in the data, and how many bytes it takes."""
        self._string()
        (dimensions,) = self._unpack("I")
        elements = prod(self._unpack(f"{dimensions}Q"))
        kind, offset = self._unpack("IQ")
        return elements, offset, _bytes(kind, elements)


def _bytes(kind: int, elements: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise DamagedGgufError(f"it holds tensors of an unknown kind {kind}") from error
    return elements // block * block_bytes
