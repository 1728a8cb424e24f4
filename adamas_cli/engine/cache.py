"""The KV cache: K, V and, for the sparse layers, 2-bit codes, appended as chunks arrive.

Only this module knows where the bytes live. Full-attention layers write into buffers with room to spare and
can be rewound to an earlier length; sliding-window layers keep their window and are rewound by remembering
it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from adamas_kernels.ops import (
    FIRST_KEYS,
    Backend,
    LayerCache,
    SparseSettings,
    allocate_codes,
    fit_codebook,
)
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

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass
class SparseDecoding:
    """What the sparse layers of one cache share.

    active: set while answer tokens are generated. Only then do layers attend sparsely, and a layer's step
    appends its new tokens by itself. length: tokens in the cache before the current step, int32 [1] on the
    layers' device, so that no step waits for the host.
    """

    settings: SparseSettings
    backend: Backend
    active: bool = False
    length: Tensor | None = None


class FullLayer(CacheLayerMixin):
    """K and V of one full-attention layer, [B, K, S, D], and their codes if it is to decode sparsely."""

    is_sliding = False

    def __init__(self, sparse: SparseDecoding | None) -> None:
        super().__init__()
        self.sparse = sparse
        self.length = 0
        self.capacity = 0
        self._coded: LayerCache | None = None  # the same buffers and the codes, from the first chunk on

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first chunk, [B, K, N, D], or for what `reserve` asked."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, new, dim = key_states.shape
        self.capacity = max(self.capacity, new)
        self._keys = key_states.new_empty(batch, heads, self.capacity, dim)
        self._values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all; keeps what is there."""
        if capacity <= self.capacity:
            return
        if self.is_initialized:
            self._keys, self._values = (self._grown(x, capacity) for x in (self._keys, self._values))
        if self._coded is not None:
            codes, scales = allocate_codes(self._keys, capacity)
            seen = slice(0, self.length)
            codes[:, :, seen] = self._coded.codes[:, :, seen]
            scales[:, :, seen] = self._coded.scales[:, :, seen]
            coded = self._coded
            coded.keys, coded.values, coded.codes, coded.scales = self._keys, self._values, codes, scales
        self.capacity = capacity

    def _grown(self, buffer: Tensor, capacity: int) -> Tensor:
        """A copy of keys or values with room for `capacity` tokens."""
        grown = buffer.new_empty(*buffer.shape[:2], capacity, buffer.shape[3])
        grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def _make_room(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for keys and values [B, K, N, D] behind what is there."""
        end = self.length + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif end > self.capacity:
            self.reserve(max(end, self.capacity + self.capacity // 2))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, K, N, D]; returns views of all keys and values so far.

        In a sparse decode step they are returned as they came: `decode` appends them.
        """
        if self.decodes_sparsely:
            return key_states, value_states
        self._make_room(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def encode(self, queries: Tensor) -> None:
        """Codes of the newest tokens, those of queries [B, H, N, D]; the first chunk fixes the codebook."""
        sparse = self.sparse
        if sparse is None:
            return
        new = slice(self.length - queries.shape[2], self.length)
        keys, values = self._keys[:, :, new], self._values[:, :, new]
        if self._coded is None or new.start == 0:  # rewound to nothing: other tokens, other statistics
            self._power = query_power(queries, keys.shape[1])
            codebook = fit_codebook(keys, self._power, sparse.settings)
        if self._coded is None:
            codes, scales = allocate_codes(self._keys, self.capacity)
            if sparse.length is None:
                sparse.length = torch.zeros(1, dtype=torch.int32, device=self.device)
            self._coded = LayerCache(
                self._keys,
                self._values,
                codes,
                scales,
                torch.zeros_like(values[:, :, 0], dtype=torch.float32),
                codebook,
                sparse.length,
            )
        elif new.start == 0:
            self._coded.codebook = codebook
        coded = self._coded
        sparse.backend.encode_keys(keys, coded.codebook, coded.codes[:, :, new], coded.scales[:, :, new])
        coded.value_sum += values.sum(2, dtype=torch.float32)

    def encode_again(self) -> None:
        """Codes of all keys by the present settings; the first FIRST_KEYS fix the codebook."""
        if self.sparse is None or self._coded is None:
            return
        coded, seen = self._coded, slice(0, self.length)
        first = coded.keys[:, :, : min(self.length, FIRST_KEYS)]
        coded.codebook = fit_codebook(first, self._power, self.sparse.settings)
        self.sparse.backend.encode_keys(
            coded.keys[:, :, seen], coded.codebook, coded.codes[:, :, seen], coded.scales[:, :, seen]
        )

    @property
    def decodes_sparsely(self) -> bool:
        """Whether the next tokens are for `decode`."""
        return self.sparse is not None and self.sparse.active and self._coded is not None

    def decode(self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Append keys and values [B, K, N, D] and attend sparsely from queries [B, H, N, D], which gives [B,
        H, N, D].
        """
        assert self.sparse is not None
        assert self._coded is not None
        self._make_room(keys, values)
        out, _ = self.sparse.backend.decode_step(
            queries, keys, values, self._coded, scaling, self.sparse.settings
        )
        self.length += keys.shape[2]
        return out

    def mark(self) -> tuple[int, Tensor | None, Codebook | None]:
        """What `rewind` needs to return to this point."""
        if self._coded is None:
            return self.length, None, None
        return self.length, self._coded.value_sum.clone(), self._coded.codebook

    def rewind(self, mark: tuple[int, Tensor | None, Codebook | None]) -> None:
        """Forget every token since `mark`."""
        self.length, value_sum, codebook = mark
        if self._coded is None:
            return
        self._coded.forget_prediction()
        if value_sum is None or codebook is None:
            self._coded.value_sum.zero_()
        else:
            self._coded.value_sum.copy_(value_sum)
            self._coded.codebook = codebook

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

    def rewind(self, mark: tuple[Tensor | None, Tensor | None, int]) -> None:
        """Forget every token since `mark`."""
        self.keys, self.values, self.cumulative_length = mark
        self.is_initialized = self.keys is not None


class AdamasCache(Cache):
    """One layer object for each layer of the model, in the form transformers' models take as
    `past_key_values`.
    """

    def __init__(self, layers: Sequence[FullLayer | SlidingLayer], sparse: SparseDecoding | None) -> None:
        super().__init__(layers=list(layers))
        self._sparse = sparse

    @classmethod
    def for_model(
        cls, config: PreTrainedConfig, sparse: SparseDecoding | None, dense_layers: int
    ) -> AdamasCache:
        """The cache for a text model's config; the first `dense_layers` layers keep no codes.

        Raises ValueError for layers that are neither full nor sliding-window attention.
        """
        layers: list[FullLayer | SlidingLayer] = []
        for index, kind in enumerate(layer_types(config)):
            if kind == SLIDING:
                layers.append(SlidingLayer(config.sliding_window))
            elif kind == FULL:
                layers.append(FullLayer(sparse if index >= dense_layers else None))
            else:
                raise ValueError(f"layer {index} is of kind {kind}")
        return cls(layers, sparse)

    def encode_again(self) -> None:
        """Codes of all keys by the present settings."""
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.encode_again()

    def start_decoding(self) -> None:
        """From here on, sparse layers decode sparsely."""
        if self._sparse is not None:
            self._sparse.active = True
            if self._sparse.length is not None:
                self._sparse.length.fill_(self.get_seq_length())

    def stop_decoding(self) -> None:
        """From here on, every layer attends fully."""
        if self._sparse is not None:
            self._sparse.active = False

    def advance(self, tokens: int) -> None:
        """Count the tokens of a step that is through all layers."""
        if self._sparse is not None and self._sparse.active and self._sparse.length is not None:
            self._sparse.length += tokens

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all, in every layer."""
        for layer in self.layers:
            layer.reserve(capacity)

    def mark(self) -> list[Any]:
        """The present state, to `rewind` to."""
        return [layer.mark() for layer in self.layers]

    def rewind(self, mark: list[Any]) -> None:
        """Forget every token since `mark`, in every layer."""
        for layer, layer_mark in zip(self.layers, mark, strict=True):
            layer.rewind(layer_mark)


class PlainCache(DynamicCache):
    """The cache of a model that keeps its own attention throughout: `--attn full` where Adamas does not
    serve it.
    """

    def start_decoding(self) -> None:
        """Its layers attend fully always."""

    def stop_decoding(self) -> None:
        """Its layers attend fully always."""

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


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer by the names transformers uses; models that name none have full attention."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        kinds = [SLIDING if sliding else FULL] * config.num_hidden_layers
    return list(kinds)
