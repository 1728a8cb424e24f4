"""The table of models with short names: where their files come from, and the hashes they must have."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Wheels:
    """Distributions that carry a model file in consecutive parts, one each, numbered from 1."""

    distribution: str  # `{part}` stands for the number
    version: str
    member: str  # end of the part's path inside its wheel
    parts: int
    part_bytes: int  # length of every part except the last, which may be shorter

    def requirement(self, part: int) -> str:
        """The requirement for pip, such as `name-part3==1.0`."""
        return f"{self.distribution.format(part=part)}=={self.version}"

    def member_of(self, part: int) -> str:
        """The end of this part's path inside its wheel."""
        return self.member.format(part=part)


@dataclass(frozen=True)
class Alias:
    """One GGUF file with a short name."""

    name: str
    title: str
    license: str
    context: int  # tokens
    file: str
    bytes: int
    sha256: str
    hub: str | None = None  # repository on the Hugging Face hub that holds `file`
    wheels: Wheels | None = None
    # Config fields needed before the file is downloaded.
    shape: dict[str, int] = field(default_factory=dict, compare=False)


@cache
def aliases() -> dict[str, Alias]:
    """Every model with a short name, in the table's order."""
    return {
        name: Alias(
            name=name, wheels=Wheels(**row["wheels"]) if "wheels" in row else None, **_without_wheels(row)
        )
        for name, row in table()["models"].items()
    }


def default_alias(*, cuda: bool) -> str:
    """The default model's short name, with or without a CUDA GPU."""
    return str(table()["default"]["cuda" if cuda else "cpu"])


def _without_wheels(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "wheels"}


@cache
def table() -> dict[str, Any]:
    """The content of `models.toml`."""
    text = files("adamas_cli.models").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
