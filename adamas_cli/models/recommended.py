"""The dated table of models worth fetching for long documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

from adamas_cli.models.aliases import table
from adamas_cli.models.quantizations import quantization


@dataclass(frozen=True)
class Recommended:
    """One GGUF file on the hub. memory: its target, such as `laptop` or `8 GB`. laptop: whether it is fast
    enough without a GPU.
    """

    title: str
    memory: str
    license: str
    context: int  # tokens
    hub: str
    file: str
    bytes: int
    shape: dict[str, int]  # fields of its config
    laptop: bool = False

    @property
    def name(self) -> str:
        """The value for `model`."""
        return f"{self.hub}:{quantization(PurePath(self.file))}"


@cache
def recommended() -> tuple[Recommended, ...]:
    """All of them, by increasing memory."""
    rows = table()["recommended"]["models"]
    return tuple(Recommended(**{"laptop": row["memory"] == "laptop", **row}) for row in rows)


def as_of() -> str:
    """The year and month of the table."""
    return str(table()["recommended"]["as_of"])
