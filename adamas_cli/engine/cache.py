"""The KV cache of a model: its layers, what they have in common, and what of them is stored."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from adamas_cli.engine.layers import (
    FULL,
    SLIDING,
    STREAMS,
    FullLayer,
    SlidingLayer,
    SparseDecoding,
    Steps,
    layer_types,
)


class AdamasCache(Cache):
    """One layer object for each layer of the model, in the form transformers' models take as
    `past_key_values`.
    """

    def __init__(
        self, layers: Sequence[FullLayer | SlidingLayer], sparse: SparseDecoding | None, steps: Steps
    ) -> None:
        super().__init__(layers=list(layers))
        self._sparse = sparse
        self.steps = steps
        self.encodes = False  # whether layers encode in the pass that is under way

    @classmethod
    def for_model(
        cls, config: PreTrainedConfig, sparse: SparseDecoding | None, dense_layers: int, steps: Steps
    ) -> AdamasCache:
        """The cache for a text model's config; the first `dense_layers` layers keep no codes.

        Raises ValueError for layers that are neither full nor sliding-window attention.
        """
        layers: list[FullLayer | SlidingLayer] = []
        for index, kind in enumerate(layer_types(config)):
            if kind == SLIDING:
                layers.append(SlidingLayer(config.sliding_window))
            elif kind == FULL:
                layers.append(FullLayer(sparse if index >= dense_layers else None, steps))
            else:
                raise ValueError(f"layer {index} is of kind {kind}")
        return cls(layers, sparse, steps)

    def encode(self) -> None:
        """Codes of the tokens that have none yet. What the codebooks are fitted to here serves all questions
        behind it.
        """
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.encode()

    @contextmanager
    def encoding(self, wanted: bool) -> Iterator[None]:
        """In which layers encode what they have attended from, if that is wanted."""
        self.encodes = wanted
        try:
            yield
        finally:
            self.encodes = False

    def encode_again(self) -> None:
        """Codes of all keys by the present settings."""
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.encode_again()

    def count_attention(self) -> None:
        """Keep a tally of what each answer's tokens attend to, from the next one on."""
        if self._sparse is not None:
            capacity = max((layer.capacity for _, layer in self._coded_layers()), default=0)
            self._sparse.tally_for(capacity, self.steps.length.device)

    @property
    def tally(self) -> Tensor | None:
        """See `SparseDecoding`."""
        return None if self._sparse is None else self._sparse.tally

    def attended(self) -> Tensor | None:
        """The softmax weight that the last answer gave to each token in the cache, float32 [S], added up over
        sparse layers and heads; None where it was not counted.
        """
        return None if self.tally is None else self.tally[0, 1, : self.get_seq_length()]

    def start_decoding(self, sparse: bool = True) -> None:
        """From here on, tokens are an answer's; sparse layers attend sparsely if `sparse` says so."""
        if self._sparse is not None and sparse:
            self.encode()
            self._sparse.active = True
            if self._sparse.tally is not None:
                self._sparse.tally.zero_()
        self.steps.active = True
        self.steps.length.fill_(self.get_seq_length())

    def stop_decoding(self) -> None:
        """From here on, every layer attends fully."""
        self.steps.active = False
        if self._sparse is not None:
            self._sparse.active = False

    @property
    def decodes_fully(self) -> bool:
        """Whether every layer attends fully now."""
        return self._sparse is None or not self._sparse.active

    def advance(self, tokens: int) -> None:
        """Count the tokens of a step that is through all layers, on the device."""
        if self.steps.active:
            self.steps.length += tokens

    def make_room(self, tokens: int) -> None:
        """Room for so many tokens behind those that are there, in every layer."""
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.make_room(tokens)

    def count_one(self) -> None:
        """Count a token that a step wrote without a call of these layers."""
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.count_one()

    def reserve(self, capacity: int, limit: int = 0) -> None:
        """Make room for `capacity` tokens in all, in every layer; see `FullLayer.reserve`."""
        for layer in self.layers:
            layer.reserve(capacity, limit)

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store of tokens [start, end), which were read last, by names such as `3.keys`. Nothing of
        it changes when more tokens are read.
        """
        return {
            f"{index}.{name}": part
            for index, layer in enumerate(self.layers)
            for name, part in layer.stored(start, end).items()
        }

    def open(
        self, shapes: Mapping[str, tuple[torch.dtype, tuple[int, int]]], length: int, device: torch.device
    ) -> None:
        """Make room for stored tokens, so many. shapes: number format, heads and width of keys and values."""
        for index, layer in enumerate(self.layers):
            if isinstance(layer, FullLayer):
                empty = []
                for name in STREAMS:
                    dtype, (heads, dim) = shapes[f"{index}.{name}"]
                    empty.append(torch.empty(1, heads, 0, dim, dtype=dtype, device=device))
                layer.reserve(length)
                if not layer.is_initialized:
                    layer.lazy_initialization(*empty)

    @staticmethod
    def is_stream(name: str) -> bool:
        """Whether a name of `stored` is of something that every token has, which `place` has a place for; the
        others are states at the last token.
        """
        return split_name(name)[1] in STREAMS

    def place(self, name: str, start: int, end: int) -> Tensor:
        """Where keys or values of tokens [start, end) belong, after `open`; see `TokenBuffer.lying`."""
        index, part = split_name(name)
        place: Tensor = self.layers[index].place(part, start, end)
        return place

    def restored(self, length: int, states: Mapping[str, Tensor]) -> None:
        """So many tokens are in their places, with these states at the last one."""
        by_layer = _by_layer(states)
        for index, layer in enumerate(self.layers):
            layer.restored(length, by_layer[index])
        self.steps.length.fill_(length)

    @property
    def coding(self) -> dict[str, Any] | None:
        """What codes depend on besides the keys and queries; None without codes."""
        if self._sparse is None:
            return None
        settings = self._sparse.settings
        return {
            "backend": self._sparse.backend.name,
            "layers": [index for index, _ in self._coded_layers()],
            "edge": settings.edge,
            "centred": settings.centred,
            "balanced": settings.balanced,
        }

    def codes(self) -> dict[str, Tensor]:
        """Copies of the codes of all tokens, by names such as `3.codes`."""
        return {
            f"{index}.{name}": part
            for index, layer in self._coded_layers()
            for name, part in layer.codes().items()
        }

    def restored_codes(self, length: int, parts: Mapping[str, Tensor]) -> None:
        """These are the codes of all tokens in the cache, so many, as `codes` gave them."""
        by_layer = _by_layer(parts)
        for index, layer in self._coded_layers():
            layer.restored_codes(length, by_layer[index])

    def _coded_layers(self) -> list[tuple[int, FullLayer]]:
        layers = ((index, layer) for index, layer in enumerate(self.layers) if isinstance(layer, FullLayer))
        return [(index, layer) for index, layer in layers if layer.sparse is not None]

    def mark(self) -> list[Any]:
        """The present state, to `rewind` to."""
        return [layer.mark() for layer in self.layers]

    def rewind(self, mark: list[Any]) -> None:
        """Forget every token since `mark`, in every layer; see `FullLayer.rewind`."""
        for layer, layer_mark in zip(self.layers, mark, strict=True):
            layer.rewind(layer_mark)
        self.steps.length.fill_(self.get_seq_length())


class PlainCache(DynamicCache):
    """The cache of a model that keeps its own attention throughout: full attention where Adamas does not
    serve it.
    """

    def encode(self) -> None:
        """Its layers keep no codes."""

    def encoding(self, wanted: bool) -> AbstractContextManager[None]:
        """Its layers keep no codes."""
        return nullcontext()

    def start_decoding(self, sparse: bool = True) -> None:
        """Its layers attend fully always."""

    def stop_decoding(self) -> None:
        """Its layers attend fully always."""

    @property
    def decodes_fully(self) -> bool:
        """Its layers attend fully always."""
        return True

    def advance(self, tokens: int) -> None:
        """Its layers count by themselves."""

    def reserve(self, capacity: int, limit: int = 0) -> None:
        """Grows by itself."""

    def mark(self) -> list[Any]:
        """A copy of the state: its layers have no common way to go back."""
        return self._copies(self.layers)

    def rewind(self, mark: list[Any]) -> None:
        """Return to `mark`, which stays good for another time."""
        self.layers = self._copies(mark)

    @staticmethod
    def _copies(layers: list[Any]) -> list[Any]:
        # Attention layers grow by new tensors and never write into old ones, so those can be shared.
        shared = (DynamicLayer, DynamicSlidingWindowLayer)
        return [copy.copy(layer) if type(layer) in shared else copy.deepcopy(layer) for layer in layers]


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Each layer's tensors by the names that it gave them."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, part = split_name(name)
        layers.setdefault(index, {})[part] = tensor
    return layers


def split_name(name: str) -> tuple[int, str]:
    """The layer and the part that a name of `AdamasCache.stored` is of."""
    index, _, part = name.partition(".")
    return int(index), part
