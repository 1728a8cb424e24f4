"""The model in a folder of quantized safetensors: its parameters by transformers' names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from adamas_kernels.blocks import PLAIN, BlockWeight
from torch import Tensor

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.checkpoint.files import Tensors
from adamas_cli.models.checkpoint.forms import Scheme
from adamas_cli.models.checkpoint.layers import Layer, layers_of
from adamas_cli.models.checkpoint.names import Origin, origins
from adamas_cli.models.checkpoint.quantized import Quantized
from adamas_cli.models.checkpoint.readers import READERS
from adamas_cli.models.families import from_config
from adamas_cli.models.filling import PARTS, Placing, fill, without_memory
from adamas_cli.models.gguf.stored import Stored, stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from adamas_cli.models.split import Split

KINDS = {dtype: kind for kind, dtype in PLAIN.items()}


def build_model(
    directory: Path,
    config: PreTrainedConfig,
    scheme: Scheme | None,
    dtype: torch.dtype,
    device: torch.device,
    placing: Placing,
    *,
    trust_remote_code: bool,
    in_blocks: bool,
    in_order: bool = False,
    split: Split | None = None,
) -> PreTrainedModel:
    """The model in `directory`, see `fill`. scheme: None for plain numbers. in_blocks, in_order: see
    `CheckpointSource`. split: to build a rank's share.

    Raises ModelUnavailableError if it lacks a tensor.
    """
    from transformers import GenerationConfig

    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config

    if split is not None:
        config = split.config(config)

    def build() -> PreTrainedModel:
        return from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)

    model = without_memory(build, directory, "settings")
    with suppress(OSError):  # a model need not have one
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    source = CheckpointSource(directory, scheme, model, dtype, device, in_blocks=in_blocks, in_order=in_order)
    if split is None:
        fill(model, source, dtype, device, placing)
    else:
        split.fill(model, source, dtype, device, placing)
    return model


class CheckpointSource:
    """See `filling.Source`. Weights are computed on `device`.

    in_blocks: whether they stay in few bits; otherwise they become numbers of `dtype`. in_order: whether
    weights with reordered columns become plain numbers.
    """

    def __init__(
        self,
        directory: Path,
        scheme: Scheme | None,
        model: PreTrainedModel,
        dtype: torch.dtype,
        device: torch.device,
        *,
        in_blocks: bool,
        in_order: bool,
    ) -> None:
        self.path = directory
        self._tensors, self._model = Tensors(directory), model
        self._dtype, self._device = dtype, device
        self._in_blocks, self._in_order = in_blocks, in_order
        self._layers: dict[str, Layer] = {}
        plain = list(self._tensors.entries)
        if scheme is not None:
            self._layers, plain = layers_of(scheme, self._tensors.entries, directory)
        self._origins = origins(model, [*self._layers, *plain])

    def stored(self, name: str) -> Stored:
        """See `Source.stored`."""
        origin = self._origin(name)
        only = origin.only
        if only is None:
            return _plain(origin.convert(name, self._model, self._numbers))
        layer = self._layers.get(only)
        if layer is None:
            return self._as_it_is(only)
        if layer.transposed or not self._in_blocks:
            return _plain(self._numbers(only))
        weight = self._quantized(layer).stored()
        return stored(weight.numbers()) if self._in_order and weight.order is not None else weight

    def place(self, name: str) -> tuple[Path, int] | None:
        """See `Source.place`."""
        only = self._origin(name).only
        if only is None or only in self._layers:
            return None
        entry = self._tensors.entries[only]
        return (entry.file, entry.start) if entry.dtype in PLAIN else None

    def experts(self, module: str) -> tuple[Sequence[BlockWeight], BlockWeight] | None:
        """See `Source.experts`."""
        gate_up, down = (self._sides(f"{module}.{part}") for part in PARTS)
        if gate_up is None or down is None or len(down) != 1:
            return None
        return gate_up, down[0]

    def require_all_used(self) -> None:
        """Unused tensors belong to parts that are not built, such as vision."""

    def _origin(self, name: str) -> Origin:
        if name not in self._origins:
            raise ModelUnavailableError(f"cannot load {self.path}: its files lack {name}.")
        return self._origins[name]

    def _sides(self, name: str) -> list[BlockWeight] | None:
        """The weights of stacked experts in blocks; two, if gates and ups are separate."""
        origin = self._origins.get(name)
        if origin is None or not self._in_blocks:
            return None
        sides = [[origin.only]] if origin.only else origin.stacked
        if sides is None or not all(name in self._layers for side in sides for name in side):
            return None
        return [block for side in sides if (block := self._joined(side)) is not None] or None

    def _joined(self, names: Sequence[str]) -> BlockWeight | None:
        """Concatenated weights; None if they are not in blocks of one kind."""
        parts = [self._quantized(self._layers[name]).stored() for name in names]
        first = parts[0]
        if first.kind in PLAIN or any(part.kind != first.kind or part.order is not None for part in parts):
            return None
        blocks = [part.block_weight for part in parts]
        return BlockWeight(first.kind, torch.cat([block.data for block in blocks]), blocks[0].columns)

    def _quantized(self, layer: Layer) -> Quantized:
        parts = {end: self._tensors.read(name).to(self._device) for end, name in layer.tensors.items()}
        try:
            return READERS[layer.form](parts, layer.told)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelUnavailableError(
                f"cannot load {self.path}: the tensors of {layer.name} do not fit together."
            ) from error

    def _numbers(self, name: str) -> Tensor:
        """The numbers of a tensor or a quantized weight, in the model's format."""
        layer = self._layers.get(name)
        if layer is None:
            return self._tensors.read(name).to(self._device)
        numbers = self._quantized(layer).numbers().to(self._dtype)
        if layer.transposed:
            experts = self._tensors.entries[next(iter(layer.tensors.values()))].shape[0]
            numbers = numbers.unflatten(0, (experts, -1)).transpose(1, 2)
        return numbers

    def _as_it_is(self, name: str) -> Stored:
        entry = self._tensors.entries[name]
        if entry.dtype in PLAIN:
            return Stored(entry.dtype, self._tensors.mapped(name), entry.shape)
        return stored(self._tensors.read(name))


def _plain(numbers: Tensor) -> Stored:
    """Numbers in their own format."""
    if numbers.dtype not in KINDS:
        return stored(numbers)
    data = numbers.contiguous().view(-1).view(torch.uint8)
    return Stored(KINDS[numbers.dtype], data, tuple(numbers.shape))
