"""The contract: settings, the caches of a layer, and every operation of a backend.

name, why = dispatch.pick("auto", device)                   # triton, cpu or torch
backend = dispatch.load(name)
book = fit_codebook(keys, query_power(queries, kv_heads), settings)  # once per layer and document
backend.encode_keys(keys, book, codes, scales)              # all keys of a document
out, lse = backend.decode_step(q, k, v, cache, scaling, settings)  # append new tokens and attend
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from adamas_kernels import reference
from adamas_kernels.blocks import BlockWeight
from adamas_kernels.hot import HotRows
from adamas_kernels.packed import dim_of, is_packed, read, rotated
from adamas_kernels.reading import BlockMeans, ReadSettings
from adamas_kernels.reference import CODES_PER_WORD, Codebook, padded_dim
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.triton.planes import PlaneWeight
from adamas_kernels.weights import DecoderWeights

SCORERS = ("dot", "manhattan")
SAMPLED_KEYS = 2048  # most keys that a codebook is fitted to
LARGEST_STEP = 16  # most new tokens in one decode step


@dataclass(frozen=True)
class SparseSettings:
    """What one sparse layer does in a decode step.

    budget: tokens each query head attends to, forced ones included.
    scorer: `dot` (int8 query against 2-bit keys) or `manhattan` (the paper's: 2-bit query against 2-bit
    keys).
    edge: fixed outer edge of the codes, or None for edges from the data.
    sinks, recents: first and last tokens that are always attended to.
    compensate: give the estimated softmax mass of the other tokens to the mean of their values; `dot` only,
        because a Manhattan distance does not estimate a score.
    balance: even out the coordinates of keys and queries before coding, see `reference.balance`.
    error: tokens whose estimated share of the softmax is lower are left to the compensation even if the
        budget has room for them, see `reference.reaches_error`; None always fills the budget.
    """

    budget: int = 128
    scorer: str = "dot"
    edge: float | None = None
    sinks: int = 4
    recents: int = 16
    compensate: bool = True
    balance: bool = True
    error: float | None = None

    def __post_init__(self) -> None:
        if self.scorer not in SCORERS:
            raise ValueError(f"scorer must be one of {', '.join(SCORERS)}, not {self.scorer!r}")
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1, not {self.budget}")
        if self.error is not None and not (0 < self.error < 1 and self.compensated):
            raise ValueError(f"error must be between 0 and 1, with compensation, not {self.error}")

    @property
    def forced(self) -> tuple[int, int]:
        """Sinks and recents (the query's own token included); together at most half of a small budget."""
        quarter = max(1, self.budget // 4)
        return min(self.sinks, quarter, self.budget - 1), max(1, min(self.recents, quarter))

    @property
    def centred(self) -> bool:
        """Whether keys are coded relative to their mean: always, except with the paper's fixed edges."""
        return self.edge is None

    @property
    def balanced(self) -> bool:
        """Whether keys and queries are balanced; like centring, never with fixed edges."""
        return self.balance and self.edge is None

    @property
    def least_share(self) -> int:
        """The exponent of `error` in the units of `reference`; 0 if there is no error."""
        return 0 if self.error is None else min(reference.units_of(self.error), -1)

    @property
    def compensated(self) -> bool:
        """Whether tokens that are not chosen contribute their estimated share."""
        return self.compensate and self.scorer == "dot"

    def under(self, softmax: Softmax) -> SparseSettings:
        """These settings for a layer with this softmax. Shares of soft-capped scores cannot be estimated in
        integers, so such a layer attends to its whole budget.
        """
        return replace(self, error=None) if softmax.softcap and self.error is not None else self


@dataclass(frozen=True)
class LayerView:
    """The filled part of one layer's cache; packed rows are unpacked.

    keys, values: [B, K, S, D]; codes: int32 [B, K, S, W]; scales: float16 [B, K, S]; value_sum: float32 [B,
    K, D].
    """

    keys: Tensor
    values: Tensor
    codes: Tensor
    scales: Tensor
    value_sum: Tensor
    codebook: Codebook


@dataclass
class DenseCache:
    """The buffers of one layer without codes, with spare room, and the number of tokens in them.

    keys, values: [B, K, C, D] of one dtype; value_sum: float32 [B, K, D], the sum of the values so far, or
    None if nothing needs it; length: int32 [B], tokens of each sequence, on the buffers' device, shared by
    all layers of a model. The last dimension of keys and values is contiguous; value_sum is contiguous.
    Keys and values may be packed rows, see `packed.py`; value_sum is then the sum of the rotated values, and
    centre, float32 [B, K, D], the centre of the keys.
    A layer with a window may keep a ring: token t lies in row t mod C. C is then at least the window plus a
    step's new tokens minus one, or all tokens.
    """

    keys: Tensor
    values: Tensor
    value_sum: Tensor | None
    length: Tensor
    centre: Tensor | None = None

    @property
    def capacity(self) -> int:
        """C, the tokens that fit."""
        return self.keys.shape[2]

    def sequences(self) -> list[DenseCache]:
        """The caches of the sequences of a batch, as views."""
        count = len(self.length)
        sums, centres = ([None] * count if x is None else x.split(1) for x in (self.value_sum, self.centre))
        parts = self.keys.split(1), self.values.split(1), sums, self.length.split(1), centres
        return [DenseCache(*buffers) for buffers in zip(*parts, strict=True)]


@dataclass
class LayerCache:
    """The buffers of one sparse layer, with spare room, and the number of tokens in them.

    keys, values: [B, K, S, D] of one dtype; codes: int32 [B, K, C, W], a transposed view: the same word of
    successive tokens is contiguous; scales: float16 [B, K, C]; value_sum: float32 [B, K, D]; length: int32
    [B], tokens of each sequence, on the buffers' device, shared by all layers of a model. The last dimension
    of keys, values and scales is contiguous; value_sum and the codebook are contiguous. For packed rows see
    `DenseCache`. hot: copies of chosen rows, for keys and values in memory that is slow to read.
    """

    keys: Tensor
    values: Tensor
    codes: Tensor
    scales: Tensor
    value_sum: Tensor
    codebook: Codebook
    length: Tensor
    centre: Tensor | None = None
    hot: HotRows | None = None

    @property
    def capacity(self) -> int:
        """C, the tokens that fit."""
        return self.codes.shape[2]

    def sequences(self) -> list[LayerCache]:
        """The caches of the sequences of a batch, as views."""
        books = zip(*(x.split(1) for x in vars(self.codebook).values()), strict=True)
        parts = (self.keys, self.values, self.codes, self.scales, self.value_sum)
        buffers = zip(*(x.split(1) for x in parts), strict=True)
        centres = [None] * len(self.length) if self.centre is None else self.centre.split(1)
        return [
            LayerCache(keys, values, codes, scales, total, Codebook(*book), length, centre)
            for (keys, values, codes, scales, total), book, length, centre in zip(
                buffers, books, self.length.split(1), centres, strict=True
            )
        ]

    def view(self, tokens: int | None = None) -> LayerView:
        """The first `tokens`; None takes all filled ones (equally many in all sequences) and waits for the
        device.
        """
        seen = slice(0, equal_length(self.length) if tokens is None else tokens)
        keys, values, codes, scales = (
            x[:, :, seen] for x in (self.keys, self.values, self.codes, self.scales)
        )
        total = self.value_sum
        if is_packed(keys.dtype):
            keys = read(keys, torch.float32, self.centre)
        if is_packed(values.dtype):
            values, total = read(values, torch.float32), rotated(total)
        return LayerView(keys, values, codes, scales, total, self.codebook)


# What is known of each sequence of an ApartCache: where its buffers begin, in numbers of the buffer's type
# after those of the cache they are `like`; the tokens that fit its codes (or its ring) and its tally; and how
# many of its first tokens full attention leaves to one pass for all sequences that share them.
APART_UNIT = 16  # numbers: the unit of places of keys, values and their sums
APART_FIELDS = (
    "keys", "values", "value_sum", "codes", "scales", "mean", "edge", "balance", "noise",
    "tally", "room", "tally_room", "skipped",
)  # fmt: skip


@dataclass
class ApartCache:
    """The sequences of a batch, each in buffers of its own, for backends with kernels that follow places.

    like: a cache of one sequence, whose data types and strides all have, except for strides that follow from
    their room. length: int32 [B]. places: int64 [B + 1, len(APART_FIELDS)] on the device; the last row says
    where the tokens lie that several sequences share, and as `skipped` how many, or 0. capacity: at least the
    tokens that fit any of them. shares: whether there may be such tokens.
    """

    like: DenseCache | LayerCache
    length: Tensor
    places: Tensor
    capacity: int
    shares: bool = False

    @property
    def keys(self) -> Tensor:
        """Only for its type and strides, like all other buffers here."""
        return self.like.keys

    @property
    def values(self) -> Tensor:
        """See `keys`."""
        return self.like.values

    @property
    def value_sum(self) -> Tensor | None:
        """See `keys`."""
        return self.like.value_sum

    @property
    def chooses(self) -> bool:
        """Whether the sequences have codes."""
        return isinstance(self.like, LayerCache)

    @property
    def codes(self) -> Tensor:
        """See `keys`; only of sequences with codes."""
        return self._coded.codes

    @property
    def scales(self) -> Tensor:
        """See `codes`."""
        return self._coded.scales

    @property
    def codebook(self) -> Codebook:
        """See `codes`."""
        return self._coded.codebook

    @property
    def _coded(self) -> LayerCache:
        assert isinstance(self.like, LayerCache)
        return self.like


def place_of(like: AnyCache, cache: AnyCache, tally: tuple[Tensor, Tensor] | None) -> list[int]:
    """A row of `ApartCache.places` without its last number, `skipped`. tally: of `like` and of the sequence,
    float32 [1, 2, C]. Raises ValueError if the cache does not fit.
    """
    found = {
        "keys": _units_apart(like.keys, cache.keys),
        "values": _units_apart(like.values, cache.values),
        "room": cache.capacity,
    }
    if like.value_sum is not None and cache.value_sum is not None:
        found["value_sum"] = _units_apart(like.value_sum, cache.value_sum)
    if isinstance(like, LayerCache) and isinstance(cache, LayerCache):
        found |= {name: _apart(getattr(like, name), getattr(cache, name)) for name in ("codes", "scales")}
        books = vars(like.codebook), vars(cache.codebook)
        found |= {
            name: _apart(books[0][name], books[1][name]) for name in ("mean", "edge", "balance", "noise")
        }
    if tally is not None:
        found |= {"tally": _apart(*tally), "tally_room": tally[1].shape[2]}
    return [found.get(name, 0) for name in APART_FIELDS[:-1]]


def _apart(like: Tensor, other: Tensor) -> int:
    """How many numbers after one buffer another begins."""
    apart, rest = divmod(other.data_ptr() - like.data_ptr(), like.element_size())
    if other.dtype != like.dtype or rest:
        raise ValueError(f"a buffer of {other.dtype} lies otherwise than those of its batch")
    return apart


def _units_apart(like: Tensor, other: Tensor) -> int:
    """The same in units of APART_UNIT, for buffers that differ only in the number of tokens."""
    apart, rest = divmod(_apart(like, other), APART_UNIT)
    if rest or other.stride()[1:] != like.stride()[1:]:
        raise ValueError(f"a buffer with strides {other.stride()} lies otherwise than those of its batch")
    return apart


AnyCache = DenseCache | LayerCache  # what full attention reads
AnyWeight = Tensor | BlockWeight | PlaneWeight  # what a linear layer multiplies by


@dataclass(frozen=True)
class Facts:
    """What decides which backend serves an operation.

    dtype: of queries. kept: of keys and values, None if theirs differ. new: tokens that attend. dim, dim_v:
    head sizes of keys and values. rows: whether queries, keys and values have contiguous rows. packed:
    whether weights are packed.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    kept: torch.dtype | None = None
    new: int = 1
    dim: int = 0
    dim_v: int = 0
    rows: bool = True
    packed: bool = False

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, values: Tensor) -> Facts:
        """The facts about attention from queries [B, H, N, D] over keys and values [B, K, S, D]."""
        tensors = queries, keys, values
        kept = keys.dtype if keys.dtype == values.dtype else None
        rows = all(x.stride(-1) == 1 for x in tensors)
        return cls(
            queries.device, queries.dtype, kept, queries.shape[2], queries.shape[3], values.shape[3], rows
        )


class Backend(Protocol):
    """One implementation of every operation that `reference.py` specifies.

    `dispatch.serving` gives the backend for an operation; `dispatch.obstacles` says why others cannot serve.
    """

    name: str

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """Write the codes of keys [B, K, N, D] to codes int32 [B, K, N, W] and scales float16 [B, K, N].

        Both may be strided views into a cache; the last dimension of keys and scales is contiguous.
        """

    def read_rows(self, rows: Tensor, dtype: torch.dtype, centre: Tensor | None = None) -> Tensor:
        """The numbers in packed rows [B, K, n, R], see `packed.read`: [B, K, n, D] in this dtype."""

    def prefill(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        lengths: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of the newest N tokens, queries [B, H, N, D], over keys and values [B, K, S, D],
        S >= N, in memory bounded by the chunk. Keys and values may have another dtype than queries.

        lengths: int32 [B], tokens of each sequence before the new ones, whose keys and values follow them;
        None means S - N for all. If given, the host waits for them; if they differ, each sequence is computed
        on its own.
        Returns the output [B, H, N, D] in the queries' dtype and the log-sum-exp of its scores, learned sinks
        included, float32 [B, H, N].
        """

    def summarize(self, keys: Tensor, values: Tensor, means: BlockMeans, start: int) -> None:
        """Write the means of all whole blocks of keys and values that end after the first `start` tokens, see
        `reading.summarize`.
        """

    def prefill_sparsely(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        means: BlockMeans,
        scaling: float,
        settings: ReadSettings,
        softmax: Softmax = PLAIN,
        computed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`prefill`, but key blocks with little weight for a query block are replaced by their means, see
        `reading.py`. Windows are not supported.

        means: of all whole blocks of the keys, the new ones included, in the queries' dtype. computed: int64
        [2] on the device; the blocks multiplied, and the blocks that dense reading would multiply, are added
        to it, counted per query head.
        """

    def dense_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: AnyCache,
        scaling: float,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, K, N, D] after `cache.length` tokens and attend to all tokens from
        queries [B, H, N, D], causally among the new ones, 1 <= N <= LARGEST_STEP.

        Every sequence has its own length. Updates keys, values and value_sum, but not codes; the caller
        updates `cache.length`. Returns output and log-sum-exp like `prefill`.
        """

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, K, N, D] after `cache.length` tokens and attend sparsely from queries
        [B, H, N, D], causally among the new ones, 1 <= N <= LARGEST_STEP.

        Every sequence has its own length. Updates keys, values, codes, scales and value_sum; the caller
        advances `cache.length`, once for all layers. tally: float32 [B, 2, C]; at each position it attends
        to, every query adds 1 to the first row and its softmax weight to the second; Triton also takes
        [N, 2, C] for one sequence, a part for each new token. Windows are not supported: they leave little to
        choose from.
        Returns the output [B, H, N, D] in the queries' dtype and the log-sum-exp of its scores, float32 [B,
        H, N], including the compensation and learned sinks.
        """

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """x [..., inputs] times a weight [outputs, inputs], plus bias: [..., outputs] in x's dtype. The
        weight may be in blocks or in planes.

        bias: [outputs], float32 for a weight in blocks. Such a weight may end in extra columns of zeros that
        x does not have.
        """


class StepsApart(Protocol):
    """A backend whose steps also take sequences that lie apart."""

    def dense_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: AnyCache | ApartCache,
        scaling: float,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.dense_step`."""

    def decode_step(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        cache: LayerCache | ApartCache,
        scaling: float,
        settings: SparseSettings,
        tally: Tensor | None = None,
        softmax: Softmax = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.decode_step`. tally: of the cache that the others are `like`."""


class WholeTokens(Protocol):
    """A backend that also computes all layers of a token in one call."""

    def decoder(self, weights: DecoderWeights) -> TokenDecoder:
        """A decoder for a model with these weights."""


@dataclass(frozen=True)
class NewTokens:
    """New tokens of one sequence, which already has `length` tokens.

    rotations: cosines and sines of the tokens' positions, [N, half of the rotated coordinates], for each kind
    of rotation that layers name. layers: those with codes attend sparsely with these settings, the others
    fully. tally: float32 [N, 2, C], one part per token, see `Backend.decode_step`; all sparse layers add to
    it.
    """

    tokens: Sequence[int]
    length: int
    rotations: Sequence[tuple[Tensor, Tensor]]
    layers: Sequence[AnyCache]
    settings: SparseSettings
    tally: Tensor | None = None


class TokenDecoder(Protocol):
    """Decodes tokens of one or more sequences, one or several tokens at a time."""

    def step(self, sequences: Sequence[NewTokens]) -> Tensor:
        """Append the new tokens of each sequence, N in total, 1 <= N <= LARGEST_STEP, and return the logits
        after each, float32 [N, vocabulary], in the order of the sequences, valid until the next step.
        If a sequence has at most `most(length)` new tokens, the logits are bit for bit those of one token per
        step. The caller makes room beforehand and counts the tokens.
        """

    def most(self, length: int) -> int:
        """The most tokens that a step should take of one sequence after `length` others, judged from the
        steps so far.
        """


def allocate_codes(keys: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Uninitialized codes int32 [B, K, C, W] and scales float16 [B, K, C] of a LayerCache, for keys like
    [B, K, N, D] or packed rows of them.
    """
    batch, heads = keys.shape[:2]
    words = padded_dim(dim_of(keys)) // CODES_PER_WORD
    codes = keys.new_empty(batch, heads, words, capacity, dtype=torch.int32).transpose(-1, -2)
    return codes, keys.new_empty(batch, heads, capacity, dtype=torch.float16)


def sampled(tokens: int) -> slice:
    """The tokens that `fit_codebook` samples out of the first `tokens`."""
    return slice(0, tokens, max(1, -(-tokens // SAMPLED_KEYS)))


def fit_codebook(keys: Tensor, power: Tensor, settings: SparseSettings) -> Codebook:
    """A codebook for keys [B, K, N, D] and for queries of this power, float32 [B, K, D], in any unit. Samples
    at most SAMPLED_KEYS evenly spaced keys.
    """
    sample = keys[:, :, sampled(keys.shape[2])]
    used = power if settings.balanced else None
    return reference.fit_codebook(sample, settings.edge, settings.centred, used)


def equal_length(length: Tensor) -> int:
    """The common length of all sequences, from int32 [B]; waits for the device. Raises ValueError if they
    differ.
    """
    lengths = set(length.tolist())
    if len(lengths) > 1:
        raise ValueError(f"sequences of {sorted(lengths)} tokens have no common view")
    return lengths.pop()


def ring_rows(start: int, end: int, capacity: int) -> slice | Tensor:
    """The index of tokens [start, end) in a buffer of `capacity` rows, see `DenseCache`."""
    return slice(start, end) if end <= capacity else torch.arange(start, end) % capacity


def check_step(
    queries: Tensor, keys: Tensor, values: Tensor, cache: AnyCache | ApartCache, softmax: Softmax = PLAIN
) -> None:
    """Raises ValueError if the shapes of a step do not fit together; reads nothing from the device."""
    batch, heads, new, dim = queries.shape
    kv_heads, capacity = cache.keys.shape[1], cache.capacity
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide into groups of {kv_heads} KV heads")
    if not 1 <= new <= min(LARGEST_STEP, capacity):
        raise ValueError(f"{new} new tokens; a step takes 1 to {min(LARGEST_STEP, capacity)}")
    if cache.length.shape != (batch,):
        raise ValueError(f"{batch} sequences need as many lengths, not {tuple(cache.length.shape)}")
    if keys.shape != (batch, kv_heads, new, dim):
        raise ValueError(f"keys {tuple(keys.shape)} do not fit queries {tuple(queries.shape)}")
    if dim_of(cache.keys) != dim:
        raise ValueError(f"keys {tuple(keys.shape)} do not fit the cache's {tuple(cache.keys.shape)}")
    if values.shape != (batch, kv_heads, new, dim_of(cache.values)):
        raise ValueError(f"values {tuple(values.shape)} do not fit the cache's {tuple(cache.values.shape)}")
    if softmax.sinks is not None and softmax.sinks.shape != (heads,):
        raise ValueError(f"{heads} query heads need as many sinks, not {tuple(softmax.sinks.shape)}")


def check_unbounded(softmax: Softmax) -> None:
    """Raises ValueError for a window, which sparse attention does not support."""
    if softmax.window is not None:
        raise ValueError("a layer with a window attends to all of it")


def check_room(tokens: int, new: int, cache: AnyCache, softmax: Softmax) -> None:
    """Raises ValueError if a cache has no room for this many tokens, the new ones included."""
    window = softmax.window
    if tokens > cache.capacity and (window is None or cache.capacity < window + new - 1):
        raise ValueError(f"{tokens} tokens do not fit a cache of {cache.capacity}")
