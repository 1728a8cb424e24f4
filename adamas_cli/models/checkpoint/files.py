"""The tensors of a model folder's safetensors files, read in place."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.families import is_read
from adamas_cli.models.folder import weight_files

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_HEADER = 100_000_000  # bytes; safetensors reads no larger header
# Number formats by safetensors' and torch's names. Words are read as int32, which torch can compute with.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "U32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. dtype: safetensors' name; start: its first byte in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors in a file, by name. Raises OSError, ValueError, KeyError, TypeError, AttributeError and
    struct.error for an invalid file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(stream.read(length))
    entries = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        first, last = told["data_offsets"]
        if 8 + length + last > size:
            raise ValueError(f"{file.name} ends within {name}")
        entries[name] = Entry(file, told["dtype"], tuple(told["shape"]), 8 + length + first, last - first)
    return entries


def read_headers(directory: Path) -> dict[str, Entry]:
    """The tensors in a folder's files that answering with text needs. Raises ModelUnavailableError for
    damaged files.
    """
    try:
        found = (entry for file in weight_files(directory) for entry in read_header(file).items())
        return {name: entry for name, entry in found if is_read(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelUnavailableError(
            f"cannot load {directory}: its weights are damaged ({error}). Fetch the model again."
        ) from error


class Tensors:
    """A folder's tensors."""

    def __init__(self, directory: Path) -> None:
        """Raises ModelUnavailableError for damaged files."""
        self.path = directory
        self.entries = read_headers(directory)

    @cached_property
    def _mapped(self) -> dict[Path, Tensor]:
        import torch

        return {
            file: torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
            for file in {entry.file for entry in self.entries.values()}
        }

    def mapped(self, name: str) -> Tensor:
        """The bytes of a tensor, mapped in place, uint8."""
        entry = self.entries[name]
        return self._mapped[entry.file][entry.start : entry.start + entry.bytes]

    def read(self, name: str) -> Tensor:
        """A tensor to be converted; a mapped one would also count as memory. Raises ModelUnavailableError for
        an unknown number format.
        """
        import numpy as np
        import torch

        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ModelUnavailableError(f"cannot load {self.path}: {name} is of {entry.dtype}.")
        found = torch.from_numpy(np.fromfile(entry.file, np.uint8, entry.bytes, offset=entry.start))
        return found.view(getattr(torch, DTYPES[entry.dtype])).view(entry.shape)
