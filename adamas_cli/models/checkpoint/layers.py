"""Finds the quantized weights of a checkpoint among its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.checkpoint.files import Entry, read_headers
from adamas_cli.models.checkpoint.forms import Form, Scheme, Told


@dataclass(frozen=True)
class Layer:
    """A quantized weight. name: of the layer; tensors: by the suffixes of their names."""

    name: str
    form: Form
    told: Told
    tensors: Mapping[str, str]

    def numbers(self, entries: Mapping[str, Entry]) -> int:
        """The number of weights in it."""
        bits = self.form.bits or self.told.bits
        return entries[self.tensors[self.form.needs[0]]].bytes * 8 // bits if bits else 0

    @property
    def held_bits(self) -> float:
        """Maximum bits of a number in memory, including its share of scales."""
        if self.form.held is not None:
            return self.form.held
        with_minimums = not self.told.symmetric and any(end in self.tensors for end in self.form.minimums)
        small = (self.form.bits or self.told.bits or 8) <= 4
        return (4.5 if small else 8.5) + 0.5 * with_minimums

    @property
    def transposed(self) -> bool:
        """See `Form`."""
        return self.form.transposed


def layers_of(
    scheme: Scheme, entries: Mapping[str, Entry], directory: Path
) -> tuple[dict[str, Layer], list[str]]:
    """The quantized weights, by the names they would have as plain numbers, and the names of all other
    tensors. Raises ModelUnavailableError if a part is missing.
    """
    layers: dict[str, Layer] = {}
    used: set[str] = set()
    for name, entry in entries.items():
        forms = [form for form in scheme.forms if _begins(form, name, entry)]
        if not forms:
            continue
        layer = name.removesuffix(forms[0].needs[0])
        lacks = {form: [end for end in form.needs if layer + end not in entries] for form in forms}
        form = next((form for form in forms if not lacks[form]), None)
        if form is None:
            raise ModelUnavailableError(
                f"cannot load {directory}: its files lack {layer}{lacks[forms[0]][0]}."
            )
        tensors = {end: layer + end for end in (*form.needs, *form.may) if layer + end in entries}
        layers[layer + form.weight] = Layer(layer, form, scheme.of(layer), tensors)
        used |= set(tensors.values())
    return layers, [name for name in entries if name not in used]


def _begins(form: Form, name: str, entry: Entry) -> bool:
    """Whether a tensor is the first tensor of a weight of this form."""
    return name.endswith(form.needs[0]) and form.dtype in (None, entry.dtype)


def tensors_of(scheme: Scheme | None, directory: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a folder's weights; quantized ones count as matrices of as many numbers. Raises
    ModelUnavailableError for damaged files.
    """
    entries = read_headers(directory)
    if scheme is None:
        return [(name, entry.shape) for name, entry in entries.items()]
    layers, plain = layers_of(scheme, entries, directory)
    quantized = [(name, (1, layer.numbers(entries))) for name, layer in layers.items()]
    return [*quantized, *((name, entries[name].shape) for name in plain)]


def held_bytes(scheme: Scheme, directory: Path) -> int:
    """Maximum bytes of a folder's weights in blocks; weights that are not quantized count as in the files."""
    entries = read_headers(directory)
    layers, plain = layers_of(scheme, entries, directory)
    quantized = sum(layer.numbers(entries) * layer.held_bits / 8 for layer in layers.values())
    return int(quantized) + sum(entries[name].bytes for name in plain)
