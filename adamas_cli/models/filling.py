"""Builds transformers' model over weights that stay in few bits, from a GGUF file or a quantized
checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from adamas_kernels.blocks import PLAIN, BlockWeight, unpack
from torch import Tensor, nn

from adamas_cli.errors import ModelUnavailableError
from adamas_cli.models.gguf.rows import FileRows
from adamas_cli.models.gguf.stored import Stored
from adamas_cli.models.reordered import reorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PARTS = ("gate_up_proj", "down_proj")  # of experts, by transformers' names


class Placing(Protocol):
    """How matrix weights are kept in memory."""

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """Make a linear layer, by its name, compute with a weight and a bias."""

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """Make embeddings return rows of a weight; False if they must be numbers."""

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """Make experts, whose biases are set, compute with these weights; False if these must be numbers."""


class Source(Protocol):
    """Where a model's parameters come from. path: for error messages."""

    path: Path

    def stored(self, name: str) -> Stored:
        """A parameter by its name, in few bits if it is stored so. Raises ModelUnavailableError."""

    def place(self, name: str) -> tuple[Path, int] | None:
        """The file that holds a parameter as `stored` returns it, and its first byte there; None if it needs
        processing.
        """

    def experts(self, module: str) -> tuple[Sequence[BlockWeight], BlockWeight] | None:
        """The arguments of `Placing.experts` for a layer's stacked experts; None if they do not exist."""

    def require_all_used(self) -> None:
        """Raises ModelUnavailableError for an unused tensor."""


def fill(
    model: PreTrainedModel, source: Source, dtype: torch.dtype, device: torch.device, placing: Placing
) -> None:
    """Give memory to a model that has none. placing: takes the weights of linear layers, embeddings and
    experts; all others become numbers of `dtype` on `device`.

    Raises ModelUnavailableError if the source lacks a tensor, or has one that the model does not.
    """
    _Filling(source, model, dtype, device, placing).fill()
    compute_buffers(model, device)


def without_memory(build: Callable[[], PreTrainedModel], path: Path, what: str) -> PreTrainedModel:
    """The result of `build`, without numbers. Raises ModelUnavailableError for settings that describe no
    model; what: the kind of settings in `path`.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # a model's code may raise anything for invalid settings
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelUnavailableError(
            f"cannot use {path}: its {what} describe no valid model: {reason}"
        ) from error


class _Filling:
    """One pass over the parameters of a model that has no memory yet."""

    def __init__(
        self,
        source: Source,
        model: PreTrainedModel,
        dtype: torch.dtype,
        device: torch.device,
        placing: Placing,
    ) -> None:
        self._source, self._model, self._placing = source, model, placing
        self._dtype, self._device = dtype, device
        self._table: Stored | None = None  # the embeddings' weight, which may also be the head's
        self._exact = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())

    def fill(self) -> None:
        """Set all parameters."""
        head = self._model.get_output_embeddings()
        tied = self._model.config.get_text_config().tie_word_embeddings
        embeddings = self._model.get_input_embeddings()
        table = next(name for name, module in self._model.named_modules() if module is embeddings)
        for name, module in list(self._model.named_modules()):
            if module is head and tied:
                if not self._shares(module, embeddings):
                    found = self._table or self._stored(f"{table}.weight", module.weight)
                    self._linear(name, module, found)
            elif type(module) is nn.Linear:
                self._linear(name, module, self._stored(f"{name}.weight", module.weight))
            elif not (self._embeds(name, module) or self._mixes(name, module)):
                self._numbers(name, module)
        self._source.require_all_used()

    def _shares(self, head: nn.Module, embeddings: nn.Module) -> bool:
        """Let a head on a GPU share the embeddings' weight, if that is plain numbers there."""
        weight = getattr(embeddings, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.device.type in ("cpu", "meta"):
            return False
        head.weight = weight
        return True

    def _numbers(self, name: str, module: nn.Module, without: Sequence[str] = ()) -> None:
        """Set a module's own parameters as numbers."""
        for leaf, parameter in _own(module):
            if leaf not in without:
                full = f"{name}.{leaf}" if name else leaf
                self._set(module, leaf, self._stored(full, parameter).numbers(), full)

    def _mixes(self, name: str, module: nn.Module) -> bool:
        """Keep a layer's stacked experts in their blocks, if the file has them in the usual tensors."""
        if not set(PARTS) <= set(module._parameters):
            return False
        weights = self._source.experts(name)
        if weights is None:
            return False
        self._numbers(name, module, without=PARTS)
        return self._placing.experts(self._model, name, *weights)

    def _embeds(self, name: str, module: nn.Module) -> bool:
        """Keep unmodified embeddings in few bits; on a CPU, in the file."""
        if not isinstance(module, nn.Embedding):
            return False
        scale, plain = getattr(module, "scalar_embed_scale", None), type(module) is nn.Embedding
        if not plain and scale is None:
            return False
        stored = self._stored(f"{name}.weight", module.weight)
        if module is self._model.get_input_embeddings():
            self._table = stored
        place = self._source.place(f"{name}.weight")
        if place is None or self._device.type != "cpu" or not hasattr(os, "pread"):
            return plain and self._placing.embedding(self._model, name, stored.block_weight)
        path, start = place
        shape = module.num_embeddings, module.embedding_dim
        self._model.set_submodule(name, FileRows(path, start, stored.kind, shape, self._dtype, scale))
        return True

    def _linear(self, name: str, module: nn.Linear, weight: Stored) -> None:
        bias = None
        if module.bias is not None:
            bias = self._stored(f"{name}.bias", module.bias).numbers()
        self._placing.linear(self._model, name, weight.block_weight, bias)
        if weight.order is not None:
            reorder(self._model, name, weight.order.to(self._device))

    def _stored(self, name: str, parameter: Tensor) -> Stored:
        stored = self._source.stored(name)
        if tuple(parameter.shape) != stored.shape:
            if parameter.numel() != torch.Size(stored.shape).numel():
                raise ModelUnavailableError(
                    f"cannot use {self._source.path}: {name} is {list(stored.shape)} there, and its settings "
                    f"make it {list(parameter.shape)}."
                )
            stored = stored.of_shape(*parameter.shape)
        return stored

    def _set(self, module: nn.Module, leaf: str, numbers: Tensor, full: str) -> None:
        exact = any(part in full for part in self._exact)
        value = numbers.to(self._device, torch.float32 if exact else self._dtype)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[leaf] = value


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and saved buffers."""
    yield from ((name, value) for name, value in module._parameters.items() if value is not None)
    for name, value in module._buffers.items():
        if value is not None and name not in module._non_persistent_buffers_set:
            yield name, value


def compute_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Give memory to values that a model computes from its config, such as frequencies, and compute them.

    Raises ModelUnavailableError for a model that does not recompute them.
    """
    for value in (*model.parameters(), *model.buffers()):
        value._is_hf_initialized = True
    pending = []
    for name, module in model.named_modules():
        module._is_hf_initialized = False
        for leaf in [leaf for leaf, buffer in module._buffers.items() if _is_meta(buffer)]:
            module._buffers[leaf] = _unset(module._buffers[leaf], device)
            pending.append((f"{name}.{leaf}", module._buffers, leaf))
    model.initialize_weights()
    for name, buffers, leaf in pending:
        if buffers[leaf].is_floating_point() and bool(buffers[leaf].isnan().any()):
            raise ModelUnavailableError(f"this version of transformers does not support the model's {name}.")


def _unset(buffer: Tensor, device: torch.device) -> Tensor:
    # Not `zeros_like`, which imports sympy for a tensor that has no memory.
    value = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    return value.fill_(torch.nan) if value.is_floating_point() else value


def _is_meta(value: Tensor | None) -> bool:
    return value is not None and value.is_meta


class Numbers:
    """torch's linear layers, with full-size weights."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device

    def linear(self, model: nn.Module, name: str, weight: BlockWeight, bias: Tensor | None) -> None:
        """See `Placing.linear`."""
        module = model.get_submodule(name)
        plain = PLAIN.get(weight.kind)
        module.weight = self._parameter(unpack(weight) if plain is None else weight.data.view(plain))
        if bias is not None:
            module.bias = self._parameter(bias)

    def embedding(self, model: nn.Module, name: str, weight: BlockWeight) -> bool:
        """Always False: embeddings become numbers."""
        return False

    def experts(self, model: nn.Module, name: str, gate_up: Sequence[BlockWeight], down: BlockWeight) -> bool:
        """Always False: experts become numbers."""
        return False

    def _parameter(self, numbers: Tensor) -> nn.Parameter:
        return nn.Parameter(numbers.to(self._device, self._dtype), requires_grad=False)
