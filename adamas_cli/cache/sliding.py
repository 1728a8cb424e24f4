"""A layer that attends to a window of the last tokens, kept in a ring: each new token replaces one that no
query will see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from adamas_kernels.contract import LARGEST_STEP, DenseCache, Facts, ring_rows
from adamas_kernels.dispatch import serving
from adamas_kernels.softmax import Softmax
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.layer import SLIDING, Layer
from adamas_cli.cache.mode import Mode
from adamas_cli.cache.names import STREAMS
from adamas_cli.cache.placement import Allocated, Placement


@dataclass(frozen=True)
class Window:
    """A SlidingLayer at `length` tokens: copies of the keys and values that the next token sees, [B, K, n,
    D]; None before there were any.
    """

    length: int
    states: tuple[Tensor, ...] | None


class SlidingLayer(Layer, CacheLayerMixin):
    """K and V of the last tokens, [B, K, C, D]; token t is in row t mod C, see `DenseCache`.

    The buffers grow with the tokens to the size of a window, and then stay in place.
    """

    kind = SLIDING
    storable = True
    is_sliding = True

    def __init__(self, window: int, extent: Extent, placement: Placement) -> None:
        super().__init__()
        self.window = window
        self.length = 0
        self._most = window + LARGEST_STEP - 1  # rows that suffice for any number of tokens
        self._reserved = 0  # tokens to make room for, up to what a window keeps
        self._oldest = 0  # the first token not yet overwritten
        self._extent, self._placement = extent, placement
        self._buffers: dict[str, TokenBuffer] = {}
        # Keys and values that the last pass attended to, if another layer attends to them too: the pass's own
        # tokens may have overwritten some.
        self._seen: tuple[Tensor, Tensor] | None = None
        self._mark: Window | None = None  # of the current state, if taken

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first chunk, [B, K, N, D], or for what `reserve` requested."""
        self.dtype, self.device = key_states.dtype, key_states.device
        rows = min(max(self._reserved, key_states.shape[2]), self._most)
        for name, states in zip(STREAMS, (key_states, value_states), strict=True):
            self._buffers[name] = self._placement.buffer(states, rows)
        self.is_initialized = True
        self._extent.version += 1

    @property
    def rings(self) -> tuple[Tensor, Tensor]:
        """The whole buffers of keys and of values."""
        return self._buffers["keys"].tensor, self._buffers["values"].tensor

    @property
    def rows(self) -> int:
        """Rows of a ring."""
        return self._buffers["keys"].room

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by transformers' models before they attend; `attend` appends."""
        return key_states, value_states

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """Append keys and values [B, K, N, D] and attend causally from queries [B, H, N, D], each within its
        window.
        """
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        softmax = replace(softmax, window=self.window)
        if mode.dense is not None and mode.answers and keys.shape[2] <= LARGEST_STEP:
            out, _ = mode.dense.dense_step(queries, keys, values, self.uncoded(), scaling, softmax)
            self.count(keys.shape[2], mode)
            return out
        known_keys, known_values = self._last(self.length)
        seen = torch.cat([known_keys, keys], 2), torch.cat([known_values, values], 2)
        out = _attend_to(seen, queries, scaling, softmax)
        self._seen = seen if self.is_shared else None
        self._put((keys, values), self.length + keys.shape[2])
        self.count(keys.shape[2], mode)
        return out

    def attend_again(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax, mode: Mode
    ) -> Tensor:
        """Attention from another layer's queries to what `attend` attended to in this pass; see
        `FullLayer.attend_again`.
        """
        softmax = replace(softmax, window=self.window)
        if (
            mode.dense is not None and mode.answers and keys.shape[2] <= LARGEST_STEP
        ):  # rewrites its token in place
            return mode.dense.dense_step(queries, keys, values, self.uncoded(), scaling, softmax)[0]
        assert self._seen is not None
        return _attend_to(self._seen, queries, scaling, softmax)

    def uncoded(self) -> DenseCache:
        """The layer as the kernels take it."""
        return DenseCache(*self.rings, None, self._extent.lengths)

    def _last(self, length: int) -> list[Tensor]:
        """Keys and values, [B, K, n, D], that the token after the first `length` ones sees."""
        seen = ring_rows(self._first_seen(length), length, self.rows)
        return [ring[:, :, seen] for ring in self.rings]

    def _first_seen(self, length: int) -> int:
        return Softmax(window=self.window).first_seen(length)

    def _put(self, states: tuple[Tensor, ...], end: int) -> None:
        """Write keys and values [B, K, n, D] of the tokens before `end`, as many as there are rows."""
        count = min(states[0].shape[2], self.rows)
        rows = ring_rows(end - count, end, self.rows)
        for ring, new in zip(self.rings, states, strict=True):
            ring[:, :, rows] = new[:, :, new.shape[2] - count :]

    def count(self, new: int, mode: Mode) -> None:
        """See `Layer.count`."""
        self.length += new
        self._oldest = max(self._oldest, self.length - self.rows)
        self._mark = None

    def reserve(self, capacity: int, limit: int) -> None:
        """See `Layer.reserve`; limited to the size of a window."""
        self._reserved = max(self._reserved, capacity)
        self._grow(capacity)

    def make_room(self, new: int) -> None:
        """See `Layer.make_room`."""
        self._grow(self.length + new)

    def _grow(self, tokens: int) -> None:
        """Make rows for this many tokens, up to the size of a window. Until then, no token has overwritten
        another.
        """
        if not self.is_initialized or min(tokens, self._most) <= self.rows:
            return
        rows = min(max(tokens, self.rows + self.rows // 2), self._most)
        larger = {
            name: self._placement.buffer(ring, rows) for name, ring in zip(STREAMS, self.rings, strict=True)
        }
        for name, ring in zip(STREAMS, self.rings, strict=True):
            larger[name].tensor[:, :, : self.length] = ring[:, :, : self.length]
        self._buffers = larger
        self._extent.version += 1

    def mark(self) -> Window:
        """See `Layer.mark`."""
        if self._mark is None:
            states = None
            if self.is_initialized:
                last = self._last(self.length)
                states = tuple(x.clone(memory_format=torch.contiguous_format) for x in last)
            self._mark = Window(self.length, states)
        return self._mark

    def rewind(self, mark: Window) -> None:
        """See `Layer.rewind`."""
        if mark is self._mark:
            return
        if mark.states is not None:
            self._put(mark.states, mark.length)
        self.length, self._oldest, self._mark = mark.length, self._first_seen(mark.length), mark

    def can_truncate(self, tokens: int) -> bool:
        """Whether everything that the next token sees is still there."""
        return tokens <= self.length and self._first_seen(tokens) >= self._oldest

    def truncate(self, tokens: int) -> None:
        """See `Layer.truncate`."""
        self.length, self._mark = min(self.length, tokens), None

    def spare(self, extent: Extent, tokens: int) -> SlidingLayer:
        """See `Layer.spare`."""
        placement = Allocated(tokens_first=self._placement.tokens_first)
        other = SlidingLayer(self.window, extent, placement)
        other.reserve(tokens, 0)
        other.lazy_initialization(*(ring[:, :, :0] for ring in self.rings))
        for ring in other.rings:
            ring.zero_()
        return other

    def fork(self, extent: Extent) -> SlidingLayer:
        """See `Layer.fork`."""
        other = SlidingLayer(self.window, extent, self._placement)
        other._reserved = self._reserved
        mark = self.mark()
        if mark.states is not None:
            other.lazy_initialization(*mark.states)
            other._grow(mark.length)
        other.rewind(mark)
        return other

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What the token at position `end` sees before it, [K, n, D]."""
        states = self.mark().states
        assert states is not None
        return {f"window_{name}": part[0] for name, part in zip(STREAMS, states, strict=True)}

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`."""
        keys, values = (states[f"window_{name}"].unsqueeze(0) for name in STREAMS)
        self._reserved = max(self._reserved, tokens)
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._grow(tokens)
        self.rewind(Window(tokens, (keys, values)))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` new tokens spans."""
        first = self._first_seen(self.length)
        return self.length - first + query_length, first

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length

    def get_max_length(self) -> int:
        """The window."""
        return self.window


def _attend_to(seen: tuple[Tensor, Tensor], queries: Tensor, scaling: float, softmax: Softmax) -> Tensor:
    """Causal attention from the last tokens' queries to keys and values, [B, K, n, D]."""
    out, _ = serving("prefill", Facts.of(queries, *seen)).prefill(queries, *seen, scaling, softmax=softmax)
    return out
