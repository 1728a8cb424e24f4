"""The contract: settings, what a layer keeps, and every operation that a backend has.

name, why = dispatch.pick("auto", device)                   # triton, cpu or torch
backend = dispatch.load(name)
book = fit_codebook(keys, query_power(queries, kv_heads), settings)  # once per layer and document
backend.encode_keys(keys, book, codes, scales)              # all keys of a document
out, lse = backend.decode_step(q, k, v, cache, scaling, settings)  # new tokens: append them and attend
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from adamas_kernels import reference
from adamas_kernels.blocks import BlockWeight
from adamas_kernels.packed import dim_of, is_packed, read, rotated
from adamas_kernels.reading import BlockMeans, ReadSettings
from adamas_kernels.reference import CODES_PER_WORD, Codebook, padded_dim
from adamas_kernels.softmax import PLAIN, Softmax
from adamas_kernels.triton.planes import PlaneWeight
from adamas_kernels.weights import DecoderWeights

SCORERS = ("dot", "manhattan")
SAMPLED_KEYS = 2048  # that a codebook is fitted to
LARGEST_STEP = 16  # new tokens that one decode step takes


@dataclass(frozen=True)
class SparseSettings:
    """What one sparse layer does in a decode step.

    budget: tokens each query head attends to, forced ones included.
    scorer: `dot` (int8 query against 2-bit keys) or `manhattan` (the paper's: 2-bit query against 2-bit
    keys).
    edge: fixed outer edge of the codes, or None for edges from the data.
    sinks, recents: first and last tokens that are always attended to.
    compensate: give the estimated softmax mass of the other tokens to the mean of their values; `dot` only,
        because a Manhattan distance is no estimate of a score.
    balance: even out the coordinates of keys and queries before they are coded, see `reference.balance`.
    error: the estimated share of the softmax below which a token is left to the compensation, though there is
        room for it in the budget, see `reference.reaches_error`; None attends to the whole budget.
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
        """Sinks and recents, the query's own token among the latter; together at most half of a small
        budget.
        """
        quarter = max(1, self.budget // 4)
        return min(self.sinks, quarter, self.budget - 1), max(1, min(self.recents, quarter))

    @property
    def centred(self) -> bool:
        """Whether keys are coded relative to their mean: always but for the paper's own setting of fixed
        edges.
        """
        return self.edge is None

    @property
    def balanced(self) -> bool:
        """Whether keys and queries are balanced: like centring, not with fixed edges."""
        return self.balance and self.edge is None

    @property
    def least_share(self) -> int:
        """The exponent of `error`, in the units of `reference`; 0 without one."""
        return 0 if self.error is None else min(reference.units_of(self.error), -1)

    @property
    def compensated(self) -> bool:
        """Whether the tokens that are not chosen add their estimated share."""
        return self.compensate and self.scorer == "dot"

    def under(self, softmax: Softmax) -> SparseSettings:
        """These, as a layer with this softmax follows them: of scores that are soft-capped no share is
        estimated in whole numbers, so all of the budget is attended to.
        """
        return replace(self, error=None) if softmax.softcap and self.error is not None else self


@dataclass(frozen=True)
class LayerView:
    """The filled part of one layer's cache, unpacked where its rows are packed.

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
    """The buffers of one layer without codes, longer than what is filled, and how many tokens that is.

    keys, values: [B, K, C, D] of one dtype; value_sum: float32 [B, K, D], the sum of the values so far, None
    where nothing needs it; length: int32 [B], of each sequence, on the buffers' device, shared by the layers
    of a model. The last dimension of keys and values is contiguous, value_sum wholly so.
    Keys and values may be packed rows, see `packed.py`; the sum is then that of the rotated values, and
    centre, float32 [B, K, D], that of the keys.
    A layer with a window may keep a ring: token t lies in row t mod C, and C is the window and all but one of
    a step's new tokens at the least, or all tokens.
    """

    keys: Tensor
    values: Tensor
    value_sum: Tensor | None
    length: Tensor
    centre: Tensor | None = None

    @property
    def capacity(self) -> int:
        """C, the tokens that there is room for."""
        return self.keys.shape[2]

    def sequences(self) -> list[DenseCache]:
        """The caches of the sequences of a batch, as views."""
        count = len(self.length)
        sums, centres = ([None] * count if x is None else x.split(1) for x in (self.value_sum, self.centre))
        parts = self.keys.split(1), self.values.split(1), sums, self.length.split(1), centres
        return [DenseCache(*buffers) for buffers in zip(*parts, strict=True)]


@dataclass
class LayerCache:
    """The buffers of one sparse layer, longer than what is filled, and how many tokens that is.

    keys, values: [B, K, S, D] of one dtype; codes: int32 [B, K, C, W], a transposed view: one word
    of many tokens lies side by side; scales: float16 [B, K, C]; value_sum: float32 [B, K, D]; length: int32
    [B], of each sequence, on the buffers' device, shared by the layers of a model. The last dimension of
    keys, values and scales is contiguous, value_sum and the codebook wholly so. For packed rows see
    `DenseCache`.
    """

    keys: Tensor
    values: Tensor
    codes: Tensor
    scales: Tensor
    value_sum: Tensor
    codebook: Codebook
    length: Tensor
    centre: Tensor | None = None

    @property
    def capacity(self) -> int:
        """C, the tokens that there is room for."""
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
        """The first `tokens`; None is what is filled, the same in all sequences, and waits for the device."""
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


AnyCache = DenseCache | LayerCache  # what full attention reads
AnyWeight = Tensor | BlockWeight | PlaneWeight  # what a linear layer multiplies by


@dataclass(frozen=True)
class Facts:
    """What decides which backend serves an operation.

    dtype: of queries, keys and values, None where they differ. new: tokens that attend. dim, dim_v: of heads.
    rows: whether those tensors have contiguous rows. packed: whether weights are packed.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    new: int = 1
    dim: int = 0
    dim_v: int = 0
    rows: bool = True
    packed: bool = False

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, values: Tensor) -> Facts:
        """The facts about attention from queries [B, H, N, D] over keys and values [B, K, S, D]."""
        tensors = queries, keys, values
        dtype = queries.dtype if queries.dtype == keys.dtype == values.dtype else None
        rows = all(x.stride(-1) == 1 for x in tensors)
        return cls(queries.device, dtype, queries.shape[2], queries.shape[3], values.shape[3], rows)


class Backend(Protocol):
    """One way to compute what `reference.py` specifies: every operation that there is.

    `dispatch.serving` gives the backend that computes an operation, and says why others do not.
    """

    name: str

    def encode_keys(self, keys: Tensor, codebook: Codebook, codes: Tensor, scales: Tensor) -> None:
        """Write the codes of keys [B, K, N, D] to codes int32 [B, K, N, W] and scales float16 [B, K, N].

        Both may be strided views into a cache; the last dimension of keys and scales is contiguous.
        """

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
        S >= N, in memory bounded by the chunk.

        lengths: int32 [B], tokens of each sequence before the new ones, whose keys and values follow them;
        None where that is S - N everywhere. Where they are given, the host waits for them, and where they
        differ, each sequence is computed on its own.
        Returns the output [B, H, N, D] in the queries' dtype and the log-sum-exp of its scores, learned sinks
        included, float32 [B, H, N].
        """

    def summarize(self, keys: Tensor, values: Tensor, means: BlockMeans, start: int) -> None:
        """Write the means of the whole blocks of keys and values that `start` tokens did not fill, see
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
        """`prefill`, but the blocks of keys that a block of queries would lose little of are left to their
        means, see `reading.py`. A window is not served.

        means: of all whole blocks of the keys, the new ones included. computed: int64 [2] on the device, to
        which blocks that were multiplied are added, and those that dense reading multiplies, a query head's
        each.
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
        """Append keys and values [B, K, N, D] behind `cache.length` tokens and attend to all tokens from
        queries [B, H, N, D], causally among the new ones, 1 <= N <= LARGEST_STEP.

        Every sequence has its own length. Keys, values and value_sum are updated, not codes; `cache.length`
        is left to the caller. Returns output and log-sum-exp as `prefill` does.
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
        """Append keys and values [B, K, N, D] behind `cache.length` tokens and attend sparsely from queries
        [B, H, N, D], causally among the new ones, 1 <= N <= LARGEST_STEP.

        Every sequence has its own length. Keys, codes, scales and value_sum are updated; `cache.length` is
        left to the caller, who advances it once for all layers. tally: float32 [B, 2, C], to whose two rows
        every query adds 1 and its softmax weight at each position that it attended to. A window is not
        served: there is little to choose from.
        Returns the output [B, H, N, D] in the queries' dtype and the log-sum-exp of its scores, float32 [B,
        H, N], the compensation and learned sinks included.
        """

    def linear(self, x: Tensor, weight: AnyWeight, bias: Tensor | None = None) -> Tensor:
        """x [..., inputs] times a weight, [outputs, inputs], in blocks or in planes, plus bias:
        [..., outputs] in x's dtype.

        bias: [outputs]; with a weight in blocks float32. Such a weight may have columns of zeros behind those
        that x has.
        """


class WholeTokens(Protocol):
    """A backend that also computes all of a token's layers in one call."""

    def decoder(self, weights: DecoderWeights) -> TokenDecoder:
        """A decoder of a model with these weights."""


@dataclass(frozen=True)
class NewTokens:
    """New tokens of one sequence, `length` of whose tokens came before.

    rotations: cosines and sines of the tokens' positions, [N, half of the rotated coordinates], for each kind
    of rotation that layers name. layers: those with codes attend sparsely, by these settings, the others
    fully. tally: float32 [N, 2, C], see `Backend.decode_step`; all sparse layers add to it, for each token to
    its own.
    """

    tokens: Sequence[int]
    length: int
    rotations: Sequence[tuple[Tensor, Tensor]]
    layers: Sequence[AnyCache]
    settings: SparseSettings
    tally: Tensor | None = None


class TokenDecoder(Protocol):
    """Decodes tokens of one sequence or of several, one after another or a few at once."""

    def step(self, sequences: Sequence[NewTokens]) -> Tensor:
        """Append the new tokens of each sequence, N of all of them, 1 <= N <= LARGEST_STEP, and return the
        logits behind each, float32 [N, vocabulary], in the order of the sequences, valid until the next step.
        Behind each they are those of a step of its own, bit for bit, where its sequence has no more of them
        than `most(length)`. The caller has made room and counts the tokens.
        """

    def most(self, length: int) -> int:
        """How many tokens of one sequence, behind so many others, a step should take at most, as far as one
        was taken.
        """


def allocate_codes(keys: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Uninitialized codes int32 [B, K, C, W] and scales float16 [B, K, C] for keys like [B, K, N, D], or such
    packed rows, as LayerCache wants them.
    """
    batch, heads = keys.shape[:2]
    words = padded_dim(dim_of(keys)) // CODES_PER_WORD
    codes = keys.new_empty(batch, heads, words, capacity, dtype=torch.int32).transpose(-1, -2)
    return codes, keys.new_empty(batch, heads, capacity, dtype=torch.float16)


def sampled(tokens: int) -> slice:
    """Of the first tokens, this many, those that `fit_codebook` looks at."""
    return slice(0, tokens, max(1, -(-tokens // SAMPLED_KEYS)))


def fit_codebook(keys: Tensor, power: Tensor, settings: SparseSettings) -> Codebook:
    """A codebook for keys [B, K, N, D], of which it looks at SAMPLED_KEYS or fewer, evenly spread, and for
    queries of this power, float32 [B, K, D], in any unit.
    """
    sample = keys[:, :, sampled(keys.shape[2])]
    used = power if settings.balanced else None
    return reference.fit_codebook(sample, settings.edge, settings.centred, used)


def equal_length(length: Tensor) -> int:
    """The one length, int32 [B], that all sequences have; waits for the device. Raises ValueError where they
    differ.
    """
    lengths = set(length.tolist())
    if len(lengths) > 1:
        raise ValueError(f"sequences of {sorted(lengths)} tokens have no common view")
    return lengths.pop()


def ring_rows(start: int, end: int, capacity: int) -> slice | Tensor:
    """Where tokens [start, end) lie in a buffer of so many rows, see `DenseCache`: an index of them."""
    return slice(start, end) if end <= capacity else torch.arange(start, end) % capacity


def check_step(
    queries: Tensor, keys: Tensor, values: Tensor, cache: AnyCache, softmax: Softmax = PLAIN
) -> None:
    """Raises ValueError where the shapes of a step do not fit together; reads nothing from the device."""
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
    """Raises ValueError for a window where attention is sparse."""
    if softmax.window is not None:
        raise ValueError("a layer with a window attends to all of it")


def check_room(tokens: int, new: int, cache: AnyCache, softmax: Softmax) -> None:
    """Raises ValueError where a cache has no room for this many tokens, the new ones included."""
    window = softmax.window
    if tokens > cache.capacity and (window is None or cache.capacity < window + new - 1):
        raise ValueError(f"{tokens} tokens do not fit a cache of {cache.capacity}")
