"""The keys of a GGUF file that describe its model. Each must be used, or the file is rejected."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from adamas_cli.errors import ModelUnavailableError

_NEEDED = object()
_MOST = 1 << 20  # of anything counted: no model has more heads or wider layers
# Keys that do not affect the model's numbers, or only repeat what a tensor shows.
_HARMLESS = frozenset(
    {
        "vocab_size",
        "context_length",
        "attention.causal",  # only false is rejected: an encoder
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",  # used by the kinds of scaling that need it
        "tensor_data_layout",
        "nextn_predict_layers",  # for predicting ahead, which is not done here
        "embedding_length_out",
        "n_deepstack_layers",  # of images
    }
)
_ONE_IS_NEUTRAL = ("scale", "factor", "step", "interval")


class Keys:
    """The keys of one model under its architecture's name, remembering which were requested, and the row
    counts of its tensors.
    """

    def __init__(self, values: dict[str, Any], architecture: str, rows: Mapping[str, int]) -> None:
        self._values = values
        self._used: set[str] = set()
        self.architecture = architecture
        self.rows = rows

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key, named without the architecture, or the default if it is absent."""
        self._used.add(name)
        value = self._values.get(f"{self.architecture}.{name}", default)
        return [_decimal(one) for one in value] if isinstance(value, list) else _decimal(value)

    def outside(self, name: str) -> Any:
        """The value of a key outside the architecture's name. Raises ModelUnavailableError if it is
        missing.
        """
        if name not in self._values:
            raise ModelUnavailableError(f"it lacks the key {name}")
        return self._values[name]

    def need(self, name: str) -> Any:
        """The value of a required key. Raises ModelUnavailableError."""
        value = self.get(name, _NEEDED)
        if value is _NEEDED:
            raise ModelUnavailableError(f"it lacks the key {self.architecture}.{name}")
        return value

    def number(self, name: str, default: Any = _NEEDED) -> int:
        """A count that is the same for all layers, though a file may repeat it for each; layers with 0 are
        ignored.
        """
        value = self.need(name) if default is _NEEDED else self.get(name, default)
        values = sorted(set(value if isinstance(value, list) else [value]) - {0})
        if any(type(one) is not int or not 0 < one <= _MOST for one in values):
            raise ModelUnavailableError(f"its key {self.architecture}.{name} is {value!r:.40}")
        if len(values) > 1:
            raise ModelUnavailableError(f"its layers differ in {name}, from {values[0]} to {values[-1]}")
        return values[0] if values else 0

    def each(self, name: str, layers: int, default: Any = _NEEDED) -> list[Any]:
        """A value for each layer; a file may have one for all."""
        value = self.need(name) if default is _NEEDED else self.get(name, default)
        if not isinstance(value, list):
            return [value] * layers
        if len(value) < layers:
            raise ModelUnavailableError(f"it has {name} for {len(value)} of {layers} layers")
        return value[:layers]

    def token(self, role: str) -> int | None:
        """The id of the token with a role, such as `eos`."""
        id_ = self._values.get(f"tokenizer.ggml.{role}_token_id")
        return id_ if isinstance(id_, int) else None

    def has(self, tensor: str) -> bool:
        """Whether the file has a tensor."""
        return tensor in self.rows

    def left(self) -> tuple[list[str], list[str]]:
        """Keys of the model that were not requested and are not neutral: those that the gguf package knows,
        and unknown ones.
        """
        known: list[str] = []
        unknown: list[str] = []
        prefix = f"{self.architecture}."
        for full, value in self._values.items():
            name = full.removeprefix(prefix)
            if name == full or name in self._used or name in _HARMLESS or _is_neutral(name, value):
                continue
            (known if name in _known_names() else unknown).append(full)
        return known, unknown


def _decimal(value: Any) -> Any:
    """A 32-bit number as originally written: the shortest decimal that rounds to it."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    shortest = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((one for one in shortest if struct.pack("f", one) == struct.pack("f", value)), value)


def _is_neutral(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_neutral(name, one) for one in value)
    return value in (0, "", "none") or (value == 1 and name.endswith(_ONE_IS_NEUTRAL))


def _known_names() -> frozenset[str]:
    """Names of all keys that llama.cpp's converters write for a model."""
    from gguf.constants import Keys as Known

    groups = [group for group in vars(Known).values() if isinstance(group, type)]
    for group in groups:
        groups += [inner for inner in vars(group).values() if isinstance(inner, type)]
    values = [value for group in groups for value in vars(group).values() if isinstance(value, str)]
    return frozenset(re.sub(r"^\{arch\}\.", "", value) for value in values if value.startswith("{arch}."))
