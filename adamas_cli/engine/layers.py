"""The layers of the KV cache: K, V and, for the sparse ones, 2-bit codes, appended as chunks arrive.

Full-attention layers write into buffers with room to spare and can be rewound to an earlier length;
sliding-window layers keep their window and are rewound by remembering it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from adamas_kernels.contract import (
    Backend,
    DenseCache,
    LayerCache,
    SparseSettings,
    allocate_codes,
    fit_codebook,
)
from adamas_kernels.reference import Codebook, query_power
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from adamas_cli.engine.buffers import token_buffer

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
    dense: Backend | None = None
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


class FullLayer(CacheLayerMixin):
    """K and V of one full-attention layer, [B, K, S, D], and their codes if it is to decode sparsely.

    K and V grow where they lie; codes, a sixteenth of that, are copied into larger buffers.
    """

    is_sliding = False

    def __init__(self, sparse: SparseDecoding | None, steps: Steps) -> None:
        super().__init__()
        self.sparse = sparse
        self.steps = steps
        self.length = 0
        self.capacity = 0  # tokens that there is room for in all that is not K and V
        self._limit = 0  # tokens that there may come to be
        self._power: Tensor | None = None  # float32 [B, K, D], of the queries so far, in any unit
        self._coded: LayerCache | None = None  # the same buffers and the codes, once something is encoded
        self._encoded = 0  # tokens that have codes by its codebook
        self._fitted = 0  # tokens that the codebook was fitted to

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first chunk, [B, K, N, D], or for what `reserve` asked."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.capacity = max(self.capacity, key_states.shape[2])
        self._buffers = {
            name: token_buffer(states, self.capacity, self._limit)
            for name, states in zip(STREAMS, (key_states, value_states), strict=True)
        }
        batch, heads, _, dim = value_states.shape
        self._value_sum = value_states.new_zeros(batch, heads, dim, dtype=torch.float32)
        self.is_initialized = True
        self.steps.version += 1

    @property
    def _keys(self) -> Tensor:
        return self._buffers["keys"].tensor

    @property
    def _values(self) -> Tensor:
        return self._buffers["values"].tensor

    def reserve(self, capacity: int, limit: int = 0) -> None:
        """Make room for `capacity` tokens in all, and for `limit` without copying K and V; the latter before
        there are any.
        """
        self._limit = max(self._limit, limit)
        self._grow(capacity)
        if capacity > self.capacity:
            self._widen(capacity)

    def make_room(self, new: int) -> None:
        """Room for so many tokens behind those that are there."""
        end = self.length + new
        self._grow(end)
        if end > self.capacity:
            self._widen(max(end, self.capacity + self.capacity // 2))

    def _grow(self, tokens: int) -> None:
        """Memory for the keys and values of so many tokens, once it is known what they look like."""
        if not self.is_initialized:
            return
        before = self._keys, self._values
        try:
            for buffer in self._buffers.values():
                buffer.grow(tokens, self.length)
        finally:  # one may have moved before there was no memory for the other
            if before[0] is not self._keys or before[1] is not self._values:
                if self._coded is not None:
                    self._coded.keys, self._coded.values = self._keys, self._values
                self.steps.version += 1

    def _widen(self, capacity: int) -> None:
        """Room for so many tokens in all that is not K and V."""
        if self._coded is not None:
            codes, scales = allocate_codes(self._keys, capacity)
            seen = slice(0, self._encoded)
            codes[:, :, seen] = self._coded.codes[:, :, seen]
            scales[:, :, seen] = self._coded.scales[:, :, seen]
            self._coded.codes, self._coded.scales = codes, scales
            self.steps.version += 1
        if self.sparse is not None and self.sparse.tally is not None:
            self.sparse.tally_for(capacity, self.steps.length.device)
        self.capacity = capacity  # last: memory may run out before

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
        out, _ = self.steps.dense.dense_step(queries, keys, values, self._uncoded(), scaling)
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

    def _uncoded(self) -> DenseCache:
        return DenseCache(self._keys, self._values, self._value_sum, self.steps.length)

    def room_for_one(self) -> DenseCache | LayerCache:
        """The buffers, with room for one more token, which the caller writes and then counts."""
        self.make_room(1)
        return self._coded if self.decodes_sparsely and self._coded else self._uncoded()

    def count_one(self) -> None:
        """A token is there that was written from outside, codes included where it decodes sparsely."""
        self.length += 1
        if self.decodes_sparsely:
            self._encoded = self.length

    def mark(self) -> FullMark:
        """What `rewind` needs to return to this point."""
        value_sum = self._value_sum.clone() if self.is_initialized else None
        if self._coded is None:
            return FullMark(self.length, value_sum, self._power, None, self._fitted)
        return FullMark(self.length, value_sum, self._power, self._coded.codebook, self._fitted)

    def rewind(self, mark: FullMark) -> None:
        """Forget every token since `mark`."""
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
        self._encoded = min(self._encoded, self.length)
        if self._coded.codebook is not mark.codebook:
            self._coded.codebook, self._encoded = mark.codebook, 0
            self.steps.version += 1

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store of tokens [start, end), the last ones: keys and values where they lie, and copies of
        what was summed over all tokens so far, [K, D].
        """
        parts = {
            **{name: self.place(name, start, end) for name in STREAMS},
            "value_sum": self._value_sum[0].clone(),
        }
        return parts if self._power is None else parts | {"power": self._power[0]}

    def place(self, name: str, start: int, end: int) -> Tensor:
        """Where keys or values of tokens [start, end) belong, see `TokenBuffer.lying`."""
        return self._buffers[name].lying(start, end)

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

    def reserve(self, capacity: int, limit: int = 0) -> None:
        """The window does not grow with the context."""

    def mark(self) -> tuple[Tensor | None, Tensor | None, int]:
        """What `rewind` needs to return to this point."""
        return self.keys, self.values, self.cumulative_length

    def rewind(self, mark: tuple[Tensor | None, Tensor | None, int]) -> None:
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


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer by the names transformers uses; models that name none have full attention."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        kinds = [SLIDING if sliding else FULL] * config.num_hidden_layers
    return list(kinds)
