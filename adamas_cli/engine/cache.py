"""The KV cache: K, V and, for the sparse layers, 2-bit codes, appended as chunks arrive.

Only this module knows where the bytes live. Full-attention layers write into buffers with room to spare and
can be rewound to an earlier length; sliding-window layers keep their window and are rewound by remembering
it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from adamas_kernels.ops import Backend, LayerCache, SparseSettings, allocate_codes, fit_codebook
from adamas_kernels.reference import Codebook, query_power
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

if TYPE_CHECKING:
    from adamas_kernels.cpu.decoder import LayerBuffers
    from adamas_kernels.dense import DenseStep

FULL, SLIDING = "full_attention", "sliding_attention"
STREAMS = ("keys", "values")  # what of a full-attention layer is stored for every token
QUERY_STRIDE = 8  # of which one query is looked at, for the mean square of coordinates
REFIT = 2  # times as many tokens as a codebook was fitted to


@dataclass
class SparseDecoding:
    """What the sparse layers of one cache share.

    active: set while answer tokens are generated sparsely. Only then do layers attend sparsely, and a
    layer's step appends its new tokens by itself. tally: float32 [1, 2, C], where it is wanted: how often
    the answer's tokens attended to each token and with what softmax weight, added up over layers and heads.
    """

    settings: SparseSettings
    backend: Backend
    active: bool = False
    tally: Tensor | None = None

    def tally_for(self, capacity: int, device: torch.device) -> Tensor:
        """The tally with room for so many tokens; keeps what is in it."""
        if self.tally is None or self.tally.shape[2] < capacity:
            tally = torch.zeros(1, 2, capacity, device=device)
            if self.tally is not None:
                tally[:, :, : self.tally.shape[2]] = self.tally
            self.tally = tally
        return self.tally


@dataclass
class Steps:
    """What all layers of one cache share while answer tokens are generated.

    length: tokens in the cache before the current step, int32 [1] on the layers' device, so that no step
    waits for the host. dense: full attention of one token by that length, where the device has it. active:
    set while answer tokens are generated. version: another one after each change of what a step reads, but
    for the contents of its buffers.
    """

    length: Tensor
    dense: DenseStep | None = None
    active: bool = False
    version: int = 0


@dataclass(frozen=True)
class FullMark:
    """The state of a FullLayer at `length` tokens; see there."""

    length: int
    value_sum: Tensor | None
    power: Tensor | None
    codebook: Codebook | None
    fitted: int
    prediction: Tensor | None


class FullLayer(CacheLayerMixin):
    """K and V of one full-attention layer, [B, K, S, D], and their codes if it is to decode sparsely."""

    is_sliding = False

    def __init__(self, sparse: SparseDecoding | None, steps: Steps) -> None:
        super().__init__()
        self.sparse = sparse
        self.steps = steps
        self.length = 0
        self.capacity = 0
        self._power: Tensor | None = None  # float32 [B, K, D], of the queries so far, in any unit
        self._coded: LayerCache | None = None  # the same buffers and the codes, once something is encoded
        self._encoded = 0  # tokens that have codes by its codebook
        self._fitted = 0  # tokens that the codebook was fitted to

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first chunk, [B, K, N, D], or for what `reserve` asked."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, new, dim = key_states.shape
        self.capacity = max(self.capacity, new)
        self._keys = key_states.new_empty(batch, heads, self.capacity, dim)
        self._values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self._value_sum = value_states.new_zeros(batch, heads, value_states.shape[-1], dtype=torch.float32)
        self.is_initialized = True
        self.steps.version += 1

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all; keeps what is there."""
        if capacity <= self.capacity:
            return
        if self.is_initialized:
            self._keys, self._values = (self._grown(x, capacity) for x in (self._keys, self._values))
        if self._coded is not None:
            codes, scales = allocate_codes(self._keys, capacity)
            seen = slice(0, self._encoded)
            codes[:, :, seen] = self._coded.codes[:, :, seen]
            scales[:, :, seen] = self._coded.scales[:, :, seen]
            coded = self._coded
            coded.keys, coded.values, coded.codes, coded.scales = self._keys, self._values, codes, scales
        self.capacity = capacity
        if self.sparse is not None and self.sparse.tally is not None:
            self.sparse.tally_for(capacity, self.steps.length.device)
        self.steps.version += 1

    def _grown(self, buffer: Tensor, capacity: int) -> Tensor:
        """A copy of keys or values with room for `capacity` tokens."""
        grown = buffer.new_empty(*buffer.shape[:2], capacity, buffer.shape[3])
        grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def make_room(self, new: int) -> None:
        """Room for so many tokens behind those that are there."""
        end = self.length + new
        if end > self.capacity:
            self.reserve(max(end, self.capacity + self.capacity // 2))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, K, N, D]; returns views of all keys and values so far.

        Where a step of its own appends them, they are returned as they came.
        """
        if self.decodes_sparsely or self.steps_fully(key_states.shape[2]):
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.make_room(key_states.shape[2])
        start, end = self.length, self.length + key_states.shape[2]
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self._value_sum += value_states.sum(2, dtype=torch.float32)
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def observe(self, queries: Tensor) -> None:
        """Note which coordinates the queries [B, H, N, D] of a chunk are large in, for the codebook.

        Also where this layer keeps no codes: a document that is stored serves those that do.
        """
        power = query_power(queries[:, :, ::QUERY_STRIDE], self._keys.shape[1]) * queries.shape[2]
        self._power = power if self._power is None else self._power + power

    def encode(self) -> None:
        """Codes of the tokens that have none yet.

        The codebook is fitted to all keys so far, and again where they have become REFIT times as many: those
        of later positions have another mean (docs/accuracy.md).
        """
        if self.sparse is None or self._power is None:
            return
        if self._coded is None or self.length >= REFIT * self._fitted:
            self._fit(self.sparse, self._power)
        coded, new = self._coded, slice(self._encoded, self.length)
        assert coded is not None
        if new.start == new.stop:
            return
        self.sparse.backend.encode_keys(
            coded.keys[:, :, new], coded.codebook, coded.codes[:, :, new], coded.scales[:, :, new]
        )
        self._encoded = self.length

    def _fit(self, sparse: SparseDecoding, power: Tensor) -> None:
        """A codebook for the keys so far, by which none has codes yet."""
        codebook = fit_codebook(self._keys[:, :, : self.length], power, sparse.settings)
        if self._coded is None:
            codes, scales = allocate_codes(self._keys, self.capacity)
            self._coded = LayerCache(
                self._keys, self._values, codes, scales, self._value_sum, codebook, self.steps.length
            )
        self._coded.codebook = codebook
        self._fitted, self._encoded = self.length, 0
        self.steps.version += 1

    def encode_again(self) -> None:
        """Codes of all keys by the present settings."""
        self._fitted = 0
        self.encode()

    @property
    def decodes_sparsely(self) -> bool:
        """Whether the next tokens are for `decode`."""
        return self.sparse is not None and self.sparse.active and self._coded is not None

    def steps_fully(self, new: int) -> bool:
        """Whether the next tokens, so many, are for `step_fully`."""
        return self.steps.dense is not None and self.steps.active and new == 1 and self.is_initialized

    def step_fully(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Append keys and values [B, K, 1, D] and attend to all tokens from queries [B, H, 1, D], which gives
        [B, H, 1, D].
        """
        assert self.steps.dense is not None
        self.make_room(1)
        out = self.steps.dense(
            queries, keys, values, self._keys, self._values, self._value_sum, self.steps.length, scaling
        )
        self.length += 1
        return out

    def decode(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Append keys and values [B, K, N, D] and attend sparsely from queries [B, H, N, D], which gives [B,
        H, N, D].
        """
        assert self.sparse is not None
        assert self._coded is not None
        self.make_room(keys.shape[2])
        out, _ = self.sparse.backend.decode_step(
            queries, keys, values, self._coded, scaling, self.sparse.settings, self.sparse.tally
        )
        self.length += keys.shape[2]
        self._encoded = self.length
        return out

    def room_for_one(self) -> LayerBuffers:
        """The buffers, with room for one more token, which the caller writes and then counts."""
        from adamas_kernels.cpu.decoder import LayerBuffers

        self.make_room(1)
        coded = self._coded if self.decodes_sparsely else None
        return LayerBuffers(self._keys, self._values, self._value_sum, coded)

    def count_one(self) -> None:
        """A token is there that was written from outside, codes included where it decodes sparsely."""
        self.length += 1
        if self.decodes_sparsely:
            self._encoded = self.length

    def mark(self) -> FullMark:
        """What `rewind` needs to return to this point."""
        value_sum = self._value_sum.clone() if self.is_initialized else None
        if self._coded is None:
            return FullMark(self.length, value_sum, self._power, None, self._fitted, None)
        learnt = self._coded.prediction
        prediction = None if learnt is None else learnt.clone()
        return FullMark(self.length, value_sum, self._power, self._coded.codebook, self._fitted, prediction)

    def rewind(self, mark: FullMark, *, keep_prediction: bool = False) -> None:
        """Forget every token since `mark`; what steps learnt since then about the next too, so that the same
        question gets the same floats whatever was asked before, unless that is to be kept.
        """
        self.length, self._power, self._fitted = mark.length, mark.power, mark.fitted
        if mark.value_sum is not None:
            self._value_sum.copy_(mark.value_sum)
        elif self.is_initialized:
            self._value_sum.zero_()
        if self._coded is None:
            return
        if mark.codebook is None:
            self._coded, self._encoded = None, 0
            self.steps.version += 1
            return
        if not keep_prediction:
            self._coded.restore_prediction(mark.prediction)
        self._encoded = min(self._encoded, self.length)
        if self._coded.codebook is not mark.codebook:
            self._coded.codebook, self._encoded = mark.codebook, 0
            self.steps.version += 1

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store of tokens [start, end), the last ones: keys and values, [K, n, D], where they lie,
        and copies of what was summed over all tokens so far, [K, D].
        """
        parts = {
            "keys": self._keys[0, :, start:end],
            "values": self._values[0, :, start:end],
            "value_sum": self._value_sum[0].clone(),
        }
        return parts if self._power is None else parts | {"power": self._power[0]}

    def place(self, name: str, start: int, end: int) -> Tensor:
        """Where keys or values of tokens [start, end) belong, [K, n, D]."""
        return (self._keys if name == "keys" else self._values)[0, :, start:end]

    def restored(self, length: int, states: Mapping[str, Tensor]) -> None:
        """Keys and values of so many tokens are in their places, with these sums over them."""
        self.length = length
        self._value_sum.copy_(states["value_sum"])
        self._power = states["power"].unsqueeze(0) if "power" in states else None

    def codes(self) -> dict[str, Tensor]:
        """Copies of all codes, [K, W, n], with their scales, [K, n], and the codebook; empty without any."""
        if self._coded is None or self._fitted != self.length:
            return {}
        coded, seen = self._coded, slice(0, self.length)
        book = {field.name: getattr(coded.codebook, field.name)[0] for field in fields(Codebook)}
        codes = {"codes": coded.codes[0, :, seen].transpose(1, 2), "scales": coded.scales[0, :, seen]}
        # Copies: a codebook that is fitted anew changes all codes where they lie.
        return {
            name: part.clone(memory_format=torch.contiguous_format) for name, part in (codes | book).items()
        }

    def restored_codes(self, length: int, parts: Mapping[str, Tensor]) -> None:
        """These are the codes of all tokens in the cache, so many."""
        codes, scales = allocate_codes(self._keys, self.capacity)
        codes[0, :, :length] = parts["codes"].transpose(1, 2)
        scales[0, :, :length] = parts["scales"]
        book = Codebook(*(parts[field.name].unsqueeze(0) for field in fields(Codebook)))
        self._coded = LayerCache(
            self._keys, self._values, codes, scales, self._value_sum, book, self.steps.length
        )
        self._fitted = self._encoded = length
        self.steps.version += 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` new tokens spans."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class SlidingLayer(DynamicSlidingWindowLayer):
    """The last window of one sliding-window layer. Its tensors are never written in place, so a mark is
    cheap.
    """

    def reserve(self, capacity: int) -> None:
        """The window does not grow with the context."""

    def mark(self) -> tuple[Tensor | None, Tensor | None, int]:
        """What `rewind` needs to return to this point."""
        return self.keys, self.values, self.cumulative_length

    def rewind(
        self, mark: tuple[Tensor | None, Tensor | None, int], *, keep_prediction: bool = False
    ) -> None:
        """Forget every token since `mark`."""
        self.keys, self.values, self.cumulative_length = mark
        self.is_initialized = self.keys is not None

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store at `end` tokens: the window, [K, n, D]."""
        assert self.keys is not None
        assert self.values is not None
        return {"window_keys": self.keys[0], "window_values": self.values[0]}

    def restored(self, length: int, states: Mapping[str, Tensor]) -> None:
        """The window behind so many tokens."""
        keys, values = (states[name].unsqueeze(0) for name in ("window_keys", "window_values"))
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.cumulative_length = keys, values, length


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

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all, in every layer."""
        for layer in self.layers:
            layer.reserve(capacity)

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
        """Where keys or values of tokens [start, end) belong, [K, n, D], after `open`."""
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

    def rewind(self, mark: list[Any], *, keep_prediction: bool = False) -> None:
        """Forget every token since `mark`, in every layer; see `FullLayer.rewind`."""
        for layer, layer_mark in zip(self.layers, mark, strict=True):
            layer.rewind(layer_mark, keep_prediction=keep_prediction)
        self.steps.length.fill_(self.get_seq_length())


class PlainCache(DynamicCache):
    """The cache of a model that keeps its own attention throughout: `--attn full` where Adamas does not
    serve it.
    """

    def encode(self) -> None:
        """Its layers keep no codes."""

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

    def reserve(self, capacity: int) -> None:
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


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer by the names transformers uses; models that name none have full attention."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        kinds = [SLIDING if sliding else FULL] * config.num_hidden_layers
    return list(kinds)
