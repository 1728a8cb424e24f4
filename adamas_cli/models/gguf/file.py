"""An open GGUF file: its keys, and its tensors in the mapped file or files."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.header import DamagedGgufError, GgufHeader, TensorEntry, read_header

if TYPE_CHECKING:
    from torch import Tensor

    from adamas_cli.models.gguf.stored import Stored

SUFFIX = ".gguf"
Name = TypeVar("Name", bound=PurePath)
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)


def is_gguf(path: PurePath) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix.lower() == SUFFIX


def parts_of(path: Name) -> list[Name]:
    """The files of a model in order, given any of them: one, or all parts of a split one."""
    name = _PART.fullmatch(path.stem)
    if name is None:
        return [path]
    count = name["count"]
    return [
        path.with_name(f"{name['stem']}-{number:05d}-of-{count}{path.suffix}")
        for number in range(1, int(count) + 1)
    ]


class GgufFile:
    """The model in a GGUF file, or in the files of a split one."""

    def __init__(self, path: Path) -> None:
        """path: of the file, or of any part. Raises ModelUnavailableError for a damaged or
        incomplete model.
        """
        self.path = path
        self.files = parts_of(path)
        self._headers = [_header(file, path) for file in self.files]
        self.keys: dict[str, Any] = self._headers[0].keys
        self.entries: dict[str, tuple[int, TensorEntry]] = {}  # with the part that contains each tensor
        self.used: set[str] = set()  # names of requested tensors
        for part, header in enumerate(self._headers):
            for entry in header.tensors.values():
                if entry.name in self.entries:
                    raise ModelUnavailableError(f"cannot use {path}: two of its parts have {entry.name}.")
                self.entries[entry.name] = part, entry
        expected = self.keys.get("split.tensors.count", len(self.entries))
        if self.keys.get("split.count", 0) > len(self.files):
            raise ModelUnavailableError(
                f"cannot use {path}: it is one of {self.keys['split.count']} parts, and its name does not "
                "say where the others are."
            )
        if expected != len(self.entries):
            raise ModelUnavailableError(
                f"cannot use {path}: its parts have {len(self.entries)} of {expected} tensors."
            )

    @property
    def architecture(self) -> str:
        """llama.cpp's name for the model's architecture."""
        name = self.keys.get("general.architecture")
        if not isinstance(name, str):
            raise ModelUnavailableError(f"cannot use {self.path}: it does not name an architecture.")
        return name

    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all tensors."""
        return [(name, entry.shape) for name, (_, entry) in self.entries.items()]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for _, entry in self.entries.values())

    @cached_property
    def _mapped(self) -> list[Tensor]:
        import torch

        return [
            torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
            for file in self.files
        ]

    def tensor(self, name: str) -> Stored:
        """A tensor in the mapped file, as `Stored`. Raises KeyError if there is none."""
        from adamas_cli.models.gguf.stored import Stored

        part, entry = self.entries[name]
        self.used.add(name)
        return Stored(entry.kind, self._mapped[part][entry.start : entry.start + entry.bytes], entry.shape)

    def place(self, name: str) -> tuple[Path, int]:
        """The file that contains a tensor, and its first byte there."""
        part, entry = self.entries[name]
        return self.files[part], entry.start


def _header(file: Path, asked: Path) -> GgufHeader:
    try:
        return read_header(file)
    except DamagedGgufError as error:
        raise ModelUnavailableError(f"cannot use {file}: {error}. Fetch it again.") from error
    except FileNotFoundError as error:
        what = f"there is no file {file}."
        if file != asked:
            what = f"{asked} is a part of a split model, and {file.name} is missing next to it."
        raise ModelUnavailableError(what) from error
    except OSError as error:
        raise ModelUnavailableError(f"cannot read {file}: {error.strerror or error}") from error
