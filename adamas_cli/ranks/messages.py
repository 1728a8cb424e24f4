"""What the first rank sends to the others, and how: pickled, with objects that each rank has by number."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from adamas_cli.errors import AdamasError
from adamas_cli.ranks.mirror import Mirrored


@dataclass(frozen=True)
class Relayed:
    """Stands for a function that only the first rank calls."""


class Join(NamedTuple):
    """Become this rank of this many, on a device by torch's name. port: of the first rank's store."""

    rank: int
    ranks: int
    port: int
    device: str


class Load(NamedTuple):
    """Load a model: call this function with the rank's own view and these arguments."""

    function: Callable[..., Any]
    arguments: Mapping[str, Any]


class Create(NamedTuple):
    """Create an object of a class with the loaded model and these arguments."""

    number: int
    kind: type
    arguments: Mapping[str, Any]


class Call(NamedTuple):
    """Call a method of an object; its result, if it is a generator or an object of all ranks, gets this
    number.
    """

    target: int
    method: str
    number: int
    arguments: Mapping[str, Any]


class Next(NamedTuple):
    """Run a generator to its next event."""

    number: int


class Close(NamedTuple):
    """End a generator."""

    number: int


class Returned(NamedTuple):
    """What a relayed function returned."""

    value: Any


class Failed(NamedTuple):
    """The last call raised an error in the first rank, as it should have in all."""


class Forget(NamedTuple):
    """Objects that are not used any more."""

    numbers: tuple[int, ...]


class Report(NamedTuple):
    """Why a rank cannot go on, for the first one. kind: of the error; message: its text."""

    kind: type[AdamasError]
    message: str

    def error(self, name: str) -> AdamasError:
        """The error, of the rank with this name."""
        found = self.kind.__new__(self.kind)
        AdamasError.__init__(found, f"{name} of the model: {self.message}")
        return found


class Here(NamedTuple):
    """A rank's process has started."""


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> int | None:
        return obj.number if isinstance(obj, Mirrored) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, objects: Mapping[int, Any]) -> None:
        super().__init__(data)
        self._objects = objects

    def persistent_load(self, number: int) -> Any:
        return self._objects[number]


def packed(message: Any) -> bytes:
    """A message as bytes."""
    data = io.BytesIO()
    _Pickler(data, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return data.getvalue()


def unpacked(data: bytes, objects: Mapping[int, Any]) -> Any:
    """A message from bytes. objects: the rank's, by number."""
    return _Unpickler(io.BytesIO(data), objects).load()
