"""Several quantizations of a model in one place, and how to choose among the files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from adamas_cli.errors import UsageError
from adamas_cli.models.gguf.file import is_gguf, parts_of

Name = TypeVar("Name", bound=PurePath)

_NO_MODEL = re.compile(r"(^|[-_.])(mmproj|imatrix)", re.IGNORECASE)  # image encoders, and statistics
_PART = re.compile(r"-(\d{5})-of-\d{5}$")
_FORMAT = re.compile(r"(?:UD-)?(?:I?Q\d(?:_\w+)?|TQ\d_\d|BF16|F16|F32|MXFP4(?:_\w+)?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """One file of several. name: for `model`. bytes: of all its parts."""

    name: str
    bytes: int


class SeveralFilesError(UsageError):
    """A name that stands for several files; `choices` lists the alternatives."""

    def __init__(self, name: str, choices: list[Choice]) -> None:
        self.choices = choices
        rows = "\n".join(f"  {choice.name}  ({gigabytes(choice.bytes)})" for choice in choices)
        super().__init__(
            f"{name} holds several models; name one of them as `model`:\n{rows}",
            choices=[choice.name for choice in choices],
        )


def gigabytes(count: int) -> str:
    """Bytes as `4.7 GB`."""
    return f"{count / 1e9:.1f} GB"


def models_among(files: Iterable[Name]) -> list[Name]:
    """The GGUF files that are models, the first part for split ones, sorted by name."""
    return sorted(
        file
        for file in files
        if is_gguf(file) and not _NO_MODEL.search(file.name) and _part_number(file) in (None, 1)
    )


def quantization(file: PurePath) -> str:
    """The number format in a file's name, such as `Q4_K_M`; without one, the name without its suffix."""
    stem = _PART.sub("", file.stem)
    found = _FORMAT.search(stem)
    return found.group().upper() if found else stem


def stem(file: PurePath) -> str:
    """A file's name without suffix and part number."""
    return _PART.sub("", file.stem)


def called(tag: str, files: Iterable[Name]) -> list[Name]:
    """The files whose quantization or name is `tag`."""
    wanted = tag.lower()
    return [file for file in files if wanted in (quantization(file).lower(), stem(file).lower())]


def tags(files: list[Name]) -> Mapping[Name, str]:
    """Each file's quantization, or its name if another file has the same quantization."""
    formats = [quantization(file) for file in files]
    return {
        file: form if formats.count(form) == 1 else stem(file)
        for file, form in zip(files, formats, strict=True)
    }


def one_of(repository: str, tag: str, sizes: Mapping[Name, int]) -> Name | None:
    """The model of a repository selected by `tag`, or the only one; None if there is none. sizes: bytes of
    each model. Raises SeveralFilesError.
    """
    wanted = called(tag, sizes) if tag else list(sizes)
    if len(wanted) > 1:
        choices = [Choice(f"{repository}:{name}", sizes[file]) for file, name in tags(wanted).items()]
        raise SeveralFilesError(f"{repository}:{tag}" if tag else repository, choices)
    return wanted[0] if wanted else None


def size(file: Path) -> int:
    """Bytes of a model's file and its other existing parts."""
    return sum(part.stat().st_size for part in parts_of(file) if part.is_file())


def _part_number(file: PurePath) -> int | None:
    found = _PART.search(file.stem)
    return int(found[1]) if found else None
