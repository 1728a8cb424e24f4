"""The caches of several sequences as one cache for a pass that takes a token of each, or a few, where each of
them lies.

To the model such a pass is one of several new tokens. Only attention, which is computed here, tells the
sequences apart; so layers must attend and do nothing else across tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from adamas_kernels.contract import APART_FIELDS, LARGEST_STEP, AnyCache, ApartCache, StepsApart, place_of
from adamas_kernels.softmax import Softmax
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.extent import Extent
from adamas_cli.cache.filling import Filler
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.layer import Layer
from adamas_cli.cache.mode import Mode
from adamas_cli.cache.sliding import SlidingLayer
from adamas_cli.cache.tally import Tally

ROOM_AHEAD = 64  # tokens: asking every layer for room takes a while
ALIGNED = 16  # bytes, as Triton's kernels have pointers
SPARE_TOKENS = LARGEST_STEP  # room of the sequence in unused rows; each pass overwrites its first tokens


def apart_obstacle(cache: KVCache) -> str | None:
    """Why a cache's sequence cannot be one of several in a pass, in a few words; None if it can."""
    return cache.not_plain(FullLayer, SlidingLayer)


class ApartLayer(Layer, CacheLayerMixin):
    """One layer of several sequences. spare: that of unused rows, to which all others are compared."""

    is_sliding = False

    def __init__(self, spare: Layer, kept: CachesApart, places: Tensor, *, shares: bool) -> None:
        super().__init__()
        assert isinstance(spare, FullLayer | SlidingLayer)
        self.kind, self.is_initialized = spare.kind, True
        self._kept, self._places, self._shares = kept, places, shares
        self._window = spare.window if isinstance(spare, SlidingLayer) else None
        self.like = self.buffers(spare)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it has no buffers of its own."""

    def buffers(self, layer: Layer) -> AnyCache:
        """A layer of one sequence as the kernels take it."""
        assert isinstance(layer, FullLayer | SlidingLayer)
        coded = layer.coded_for(self._kept.mode) if isinstance(layer, FullLayer) else None
        return layer.uncoded() if coded is None else coded

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by transformers' models before they attend; `attend` appends."""
        return key_states, value_states

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """Append N / `size` tokens of each sequence, keys and values [1, K, N, D], to its own cache, and
        attend from queries [1, H, N, D].
        """
        kept, tally = self._kept, self._kept.tally
        cache = ApartCache(self.like, kept.extent.lengths, self._places, kept.room, self._shares)
        new_queries, new_keys, new_values = (
            x[0].unflatten(1, (kept.size, kept.new)).transpose(0, 1) for x in (queries, keys, values)
        )
        new = new_queries, new_keys, new_values
        if mode.sparse is not None and cache.chooses:
            backend = cast(StepsApart, mode.sparse.backend)
            counts = None if tally is None else tally.counts
            out, _ = backend.decode_step(*new, cache, scaling, mode.sparse.settings, counts, softmax)
        else:
            softmax = replace(softmax, window=self._window) if self._window is not None else softmax
            out, _ = cast(StepsApart, mode.dense).dense_step(*new, cache, scaling, softmax)
        return out.transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """See `FullLayer.get_mask_sizes`; there are no masks in a pass."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """The new tokens are told their positions."""
        return 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


@dataclass(eq=False)
class OneOfMany:
    """A sequence that takes steps with others. tokens: including those that its cache does not count yet."""

    cache: KVCache
    mode: Mode
    tokens: int

    def make_room(self, new: int = 1) -> int:
        """Changes: the cache counts all tokens and has room for the next ones, at least `new`; returns how
        many fit it.
        """
        self.settle()
        room = max(new, min(ROOM_AHEAD, self.cache.capacity - self.tokens))
        self.cache.make_room(room)
        return self.tokens + room

    def settle(self) -> None:
        """Changes: the cache counts all tokens, on the host."""
        if uncounted := self.tokens - self.cache.get_seq_length():
            self.cache.count(uncounted, self.mode)

    def retract(self) -> None:
        """Changes: the last token has never come."""
        self.settle()
        self.tokens -= 1
        self.cache.truncate(self.tokens)


class _Told(NamedTuple):
    """What a pass is told about its sequences, in one buffer: all int64, places int64 [layers, size + 1,
    fields], see `ApartCache`; lengths, present: int32 [size], tokens before the pass and new ones.
    """

    all: Tensor
    places: Tensor
    lengths: Tensor
    present: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, int, int], device: torch.device) -> _Told:
        """Zeros for places of this shape."""
        size = shape[1] - 1
        parts = 8 * math.prod(shape), 4 * size, 4 * size  # bytes
        ends = np.cumsum([-(-part // ALIGNED) * ALIGNED for part in parts])
        told = torch.zeros(int(ends[-1]) // 8, dtype=torch.int64, device=device)
        counts = told.view(torch.int32)
        lengths, present = (counts[end // 4 :][:size] for end in ends[:2].tolist())
        return cls(told, told[: math.prod(shape)].view(shape), lengths, present)


class CachesApart(KVCache):
    """The caches of up to `size` sequences. mode: of all of them, with the tally of the unused rows, if there
    is one. like: a cache of such a sequence. room: maximum tokens that fit any of them. new: tokens of each
    sequence in a pass, at most SPARE_TOKENS.

    extent: lengths int32 [size]; `advance` counts the tokens of each sequence.
    """

    def __init__(self, like: KVCache, mode: Mode, size: int, room: int, new: int = 1) -> None:
        device = like.extent.lengths.device
        shape = len(like.kept), size + 1, len(APART_FIELDS)
        told = _Told.zeros(shape, device)
        extent = Extent(told.lengths, reach=like.extent.reach, shift=like.extent.shift)
        alone = Extent(torch.zeros(1, dtype=torch.int32, device=device))
        self.size, self.room, self.new = size, room, new
        self.mode = replace(mode, tally=None if mode.tally is None else Tally(SPARE_TOKENS, device))
        self._told, self._filler = told, Filler(told.all)
        self._host = _Told.zeros(shape, torch.device("cpu"))  # what is told next
        self._seated: list[tuple[object, int, int]] | None = None
        self._known: WeakKeyDictionary[KVCache, tuple[int, np.ndarray]] = WeakKeyDictionary()
        spares = [layer.spare(alone, SPARE_TOKENS) for layer in like.kept]
        self._own = [
            ApartLayer(spare, self, places, shares=size > 1)
            for spare, places in zip(spares, told.places, strict=True)
        ]
        super().__init__(self._own, extent, like.placement, None)
        self.tally = self.mode.tally
        self._spare_places = self._found(None, spares)
        self.seat([])

    def seat(self, sequences: Sequence[OneOfMany]) -> None:
        """Changes: the first rows are these sequences', each of which must have room for its tokens; the
        others are unused. Raises ValueError if one does not fit the others.
        """
        seated = _seated(sequences)
        if seated == self._seated:
            return
        self._seated = None
        caches = [one.cache for one in sequences]
        root, common = common_root(caches)
        sharing = [cache.root is not None and cache.root.id is root for cache in caches]
        unused = self.size - len(caches)
        self._put_places(self._host.places.numpy(), sequences, sharing, common)
        self._host.lengths.numpy()[:] = [one.tokens for one in sequences] + [0] * unused
        self._host.present.numpy()[:] = [self.new] * len(caches) + [0] * unused
        self._filler.fill(self._host.all.numpy())
        self._seated = seated

    def count_step(self, sequences: Sequence[OneOfMany]) -> None:
        """Changes: the sequences that were seated for a step have its tokens."""
        for one in sequences:
            one.tokens += self.new
        self._seated = _seated(sequences)

    def _put_places(
        self, rows: np.ndarray, sequences: Sequence[OneOfMany], sharing: Sequence[bool], common: int
    ) -> None:
        """Put the places of each layer into rows, int64, see `ApartCache`."""
        spare = self._spare_places
        each = [self._places_of(one.cache) for one in sequences]
        first = next((places for places, shares in zip(each, sharing, strict=True) if shares), spare)
        skipped = [common * shares for shares in sharing] + [0] * (self.size - len(each)) + [common]
        each += [spare] * (self.size - len(each)) + [first]
        rows[..., :-1], rows[..., -1] = np.stack(each, 1), skipped

    def _places_of(self, cache: KVCache) -> np.ndarray:
        """The places of a cache in each layer, as long as it stays where it is."""
        version, places = self._known.get(cache, (None, self._spare_places))
        if version != cache.extent.version:
            places = self._found(cache, cache.kept)
            self._known[cache] = cache.extent.version, places
        return places

    def _found(self, cache: KVCache | None, layers: Sequence[Layer]) -> np.ndarray:
        """The places of a cache's layers, int64 [layers, fields but the last]."""
        tallies = self._tallies(cache)
        found = [
            place_of(own.like, own.buffers(layer), tallies)
            for own, layer in zip(self._own, layers, strict=True)
        ]
        return np.array(found, np.int64)

    def _tallies(self, cache: KVCache | None) -> tuple[Tensor, Tensor] | None:
        if self.tally is None:
            return None
        tally = self.tally if cache is None or cache.tally is None else cache.tally
        return self.tally.counts, tally.counts

    def advance(self, tokens: int, mode: Mode) -> None:
        """Changes: each sequence has its new tokens, on the device."""
        self.extent.lengths += self._told.present


def _seated(sequences: Sequence[OneOfMany]) -> list[tuple[object, int, int]]:
    """What rows depend on. It keeps no cache alive."""
    return [(ref(one), one.cache.extent.version, one.tokens) for one in sequences]


def common_root(caches: Sequence[KVCache]) -> tuple[object | None, int]:
    """The root that most of these caches have in common, if several do, and the tokens that all of those
    share.
    """
    roots = [cache.root for cache in caches if cache.root is not None]
    (found, count), *_ = Counter(root.id for root in roots).most_common(1) or [(None, 0)]
    if count < 2:
        return None, 0
    return found, min(root.tokens for root in roots if root.id is found)
