"""The KV cache: K, V and, for the sparse layers, 2-bit codes, appended as chunks arrive.

Only this module knows where the bytes live. Full-attention layers write into buffers with room to spare and
can be rewound to an earlier length; sliding-window layers keep their window and are rewound by remembering
it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from adamas_kernels.ops import LayerView, SparseSettings, encode_keys, fit_codebook
from adamas_kernels.reference import CODES_PER_WORD, Codebook, padded_dim
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


class FullLayer(CacheLayerMixin):
    """K and V of one full-attention layer, [B, K, S, D], and their codes if `sparse` settings are given."""

    is_sliding = False

    def __init__(self, sparse: SparseSettings | None) -> None:
        super().__init__()
        self.sparse = sparse
        self.length = 0
        self.capacity = 0
        self.codebook: Codebook | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first chunk, [B, K, N, D], or for what `reserve` asked."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, new, dim = key_states.shape
        self.capacity = max(self.capacity, new)
        self._keys = key_states.new_empty(batch, heads, self.capacity, dim)
        self._values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True
        if self.sparse is not None:
            words = padded_dim(dim) // CODES_PER_WORD
            # Words outermost: a decode step reads one word of many keys at a time.
            self._codes = key_states.new_empty(batch, heads, words, self.capacity, dtype=torch.int32)
            self._scales = key_states.new_empty(batch, heads, self.capacity, dtype=torch.float16)
            self._value_sum = key_states.new_zeros(batch, heads, value_states.shape[-1], dtype=torch.float32)

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` tokens in all; keeps what is there."""
        if capacity <= self.capacity:
            return
        if self.is_initialized:
            self._keys, self._values = (self._grown(x, 2, capacity) for x in (self._keys, self._values))
            if self.sparse is not None:
                self._codes = self._grown(self._codes, 3, capacity)
                self._scales = self._grown(self._scales, 2, capacity)
        self.capacity = capacity

    def _grown(self, buffer: Tensor, dim: int, capacity: int) -> Tensor:
        """A copy of the buffer with room for `capacity` tokens along `dim`."""
        shape = list(buffer.shape)
        shape[dim] = capacity
        grown = buffer.new_empty(shape)
        grown.narrow(dim, 0, self.length).copy_(buffer.narrow(dim, 0, self.length))
        return grown

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, K, N, D]; returns views of all keys and values so far."""
        start, end = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif end > self.capacity:
            self.reserve(max(end, self.capacity + self.capacity // 2))
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        if self.sparse is not None:
            if self.codebook is None:
                self.codebook = fit_codebook(key_states, self.sparse)
            codes, scales = encode_keys(key_states, self.codebook)
            self._codes[..., start:end] = codes.transpose(-1, -2)
            self._scales[:, :, start:end] = scales
            self._value_sum += value_states.float().sum(2)
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def view(self) -> LayerView:
        """The layer as a sparse decode step reads it. Raises ValueError where the layer keeps no codes."""
        if self.codebook is None:
            raise ValueError("this layer keeps no codes")
        seen = slice(0, self.length)
        return LayerView(
            self._keys[:, :, seen],
            self._values[:, :, seen],
            self._codes[..., seen].transpose(-1, -2),
            self._scales[:, :, seen],
            self._value_sum,
            self.codebook,
        )

    def mark(self) -> tuple[int, Tensor | None, Codebook | None]:
        """What `rewind` needs to return to this point."""
        value_sum = self._value_sum.clone() if self.sparse is not None and self.is_initialized else None
        return self.length, value_sum, self.codebook

    def rewind(self, mark: tuple[int, Tensor | None, Codebook | None]) -> None:
        """Forget every token since `mark`."""
        self.length, value_sum, self.codebook = mark
        if value_sum is not None:
            self._value_sum.copy_(value_sum)
        elif self.sparse is not None and self.is_initialized:
            self._value_sum.zero_()

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

    decoding: set while answer tokens are generated; the attention function is sparse only then.
    """

    def __init__(self, layers: Sequence[FullLayer | SlidingLayer]) -> None:
        super().__init__(layers=list(layers))
        self.decoding = False

    @classmethod
    def for_model(
        cls, config: PreTrainedConfig, sparse: SparseSettings | None, dense_layers: int
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
        return cls(layers)

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

    decoding = False

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
