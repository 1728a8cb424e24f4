"""A layer that attends to all tokens: keys and values in buffers that grow, and codes if it may be sparse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from adamas_kernels.contract import LARGEST_STEP, DenseCache, Facts, LayerCache
from adamas_kernels.dispatch import serving
from adamas_kernels.packed import (
    centre_of,
    dim_of,
    fits,
    is_packed,
    kept_sum,
    numbers,
    row_size,
    write,
)
from adamas_kernels.reference import query_power
from adamas_kernels.softmax import PLAIN, Softmax
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from adamas_cli.cache.codes import Codes, CodesMark
from adamas_cli.cache.extent import Extent
from adamas_cli.cache.formats import Formats
from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.layer import FULL, Layer
from adamas_cli.cache.means import Means
from adamas_cli.cache.mode import Mode, Sparse, SparseReading
from adamas_cli.cache.names import STREAMS
from adamas_cli.cache.placement import Allocated, Hosted, Placement

QUERY_STRIDE = 8  # one query in this many is sampled for the mean square of coordinates


def rows_like(states: Sequence[Tensor], formats: Formats | None) -> list[Tensor]:
    """Empty keys and values [B, K, 0, R] like these, as rows of these formats if they fit."""
    if formats is None or not all(is_packed(x.dtype) or fits(x.shape[3]) for x in states):
        return list(states)
    return [
        x if x.dtype == format else x.new_empty(*x.shape[:2], 0, row_size(x.shape[3], format), dtype=format)
        for x, format in zip(states, formats, strict=True)
    ]


def _some(rows: Tensor, dtype: torch.dtype, centre: Tensor | None, tokens: slice) -> Tensor:
    """Some tokens of rows [B, K, S, R]: packed ones as this dtype, others as they are."""
    seen = rows[:, :, tokens]
    if not is_packed(rows.dtype):
        return seen
    return serving("read_rows", Facts(rows.device)).read_rows(seen, dtype, centre)


@dataclass(frozen=True)
class FullMark:
    """The state of a FullLayer at `length` tokens; see there."""

    length: int
    value_sum: Tensor | None
    power: Tensor | None
    codes: CodesMark | None


class FullLayer(Layer, CacheLayerMixin):
    """K and V of one full-attention layer, [B, K, S, D]; with codes if `sparse` says how to choose, and with
    block means if it reads sparsely.

    K and V grow in place if their placement can; codes are copied into larger buffers. streams: the `STREAMS`
    with buffers of their own. formats: of the rows of K and of V, see `packed.py`; None to keep numbers
    unpacked. Reading unpacks only this layer's rows, and steps read them packed.
    """

    kind = FULL
    storable = True
    is_sliding = False
    streams: tuple[str, ...] = STREAMS

    def __init__(
        self,
        extent: Extent,
        placement: Placement,
        sparse: Sparse | None = None,
        *,
        reads: bool = False,
        formats: Formats | None = None,
    ) -> None:
        super().__init__()
        self.length = 0
        self.formats = formats
        self.centre: Tensor | None = None  # float32 [B, K, D], of keys in packed rows
        self.capacity = 0  # tokens there is room for in everything except K and V
        self.codes = None if sparse is None else Codes(sparse, extent)
        self.means = Means() if reads else None
        self._extent, self._placement = extent, placement
        self._limit = 0  # maximum token count
        self._buffers: dict[str, TokenBuffer] = {}
        self._power: Tensor | None = None  # float32 [B, K, D], of the queries so far, in any unit

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first chunk, [B, K, N, D], or for what `reserve` requested."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.capacity = max(self.capacity, key_states.shape[2])
        rows = rows_like((key_states, value_states), self.formats)
        likes = dict(zip(self.streams, rows, strict=False))
        missing = {name: like for name, like in likes.items() if name not in self._buffers}
        if missing:
            self._buffers |= self._placement.buffers(missing, self.capacity, self._limit)
        sums = [rows.new_zeros(*rows.shape[:2], dim_of(rows), dtype=torch.float32) for rows in rows]
        self.centre, self.value_sum = sums[0] if is_packed(rows[0].dtype) else None, sums[1]
        self.is_initialized = True
        self._extent.version += 1

    @property
    def coded(self) -> bool:
        """See `Layer.coded`."""
        return self.codes is not None

    @property
    def staged(self) -> bool:
        """Whether full attention brings its keys and values from host memory."""
        return self._placement.staging is not None

    @property
    def buffers(self) -> Mapping[str, TokenBuffer]:
        """The memory of keys and values, by the names of `streams`."""
        return self._buffers

    @property
    def stored_keys(self) -> Tensor:
        """The whole buffer, [B, K, S, D], S >= length."""
        return self._buffers["keys"].tensor

    @property
    def stored_values(self) -> Tensor:
        """The whole buffer, [B, K, S, D], S >= length."""
        return self._buffers["values"].tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by transformers' models before they attend; `attend` appends."""
        return key_states, value_states

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """Append keys and values [B, K, N, D], for which there must be room, and attend causally from queries
        [B, H, N, D].
        """
        new = keys.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        coded = self.coded_for(mode)
        if coded is not None and mode.sparse is not None:
            counts = None if mode.tally is None else mode.tally.current
            sparse = mode.sparse
            if isinstance(self._placement, Hosted) and self.codes is not None:
                chosen = queries.shape[1] // keys.shape[1] * sparse.settings.budget
                self.codes.keep_chosen(chosen, self._placement.copied_steps)
            out, _ = sparse.backend.decode_step(
                queries, keys, values, coded, scaling, sparse.settings, counts, softmax
            )
            self.count(new, mode)
            return out
        kept = self._open()
        if mode.dense is not None and mode.answers and new <= LARGEST_STEP:
            out, _ = mode.dense.dense_step(queries, keys, values, kept, scaling, softmax)
            self.count(new, mode)
        else:
            self._append(keys, values, kept)
            if mode.read is not None and self.means is not None and softmax is PLAIN:
                out = self._read_sparsely(queries, scaling, self.means, mode.read, kept)
            else:
                out = self._attend_to_all(queries, scaling, softmax, kept)
            self._observe(queries[:, :, ::QUERY_STRIDE], new)
            if mode.encodes:
                self._encode(kept)
        self._close(new)
        return out

    def attend_again(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softmax: Softmax, mode: Mode
    ) -> Tensor:
        """Attention from another layer's queries [B, H, N, D] to the existing tokens, of which `attend` has
        appended the last ones in this pass: keys and values [B, K, N, D].
        """
        new = keys.shape[2]
        # A step rewrites its token in place, and must add it to the sum of the earlier ones.
        before = self.value_sum - self._sum_of_values(self.length - new, self.length)
        coded = self.coded_for(mode)
        if coded is not None and mode.sparse is not None:
            counts = None if mode.tally is None else mode.tally.current
            sparse, coded = mode.sparse, replace(coded, value_sum=before)
            out, _ = sparse.backend.decode_step(
                queries, keys, values, coded, scaling, sparse.settings, counts, softmax
            )
            return out
        kept = self._open()
        if mode.dense is not None and mode.answers and new <= LARGEST_STEP:
            kept = replace(kept, value_sum=before)
            return mode.dense.dense_step(queries, keys, values, kept, scaling, softmax)[0]
        return self._attend_to_all(queries, scaling, softmax, kept)

    def _open(self) -> DenseCache:
        """The layer where many tokens attend to all of it, with room for the new ones. Those are written
        there, and reach the layer's buffers by `_close`.
        """
        kept, staging = self.uncoded(), self._placement.staging
        if staging is None:
            return kept
        keys, values = staging.open(self)
        return replace(kept, keys=keys, values=values)

    def _close(self, new: int) -> None:
        """The last tokens, this many, were written where `_open` told."""
        if self._placement.staging is not None:
            self._placement.staging.close(self, self.length - new)

    def _read_sparsely(
        self, queries: Tensor, scaling: float, means: Means, read: SparseReading, kept: DenseCache
    ) -> Tensor:
        """`_attend_to_all`, skipping blocks that hold little of the softmax."""
        keys, values = self._seen(kept, queries.dtype)
        blocks = means.over(keys, values, queries.dtype, self.capacity)
        backend = read.backend or serving("prefill_sparsely", Facts.of(queries, keys, values))
        out, _ = backend.prefill_sparsely(
            queries, keys, values, blocks, scaling, read.settings, computed=read.computed
        )
        return out

    def _seen(self, kept: DenseCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, packed ones unpacked to this format."""
        tokens = slice(0, self.length)
        return _some(kept.keys, dtype, kept.centre, tokens), _some(kept.values, dtype, None, tokens)

    def _sum_of_values(self, start: int, end: int) -> Tensor:
        """Of tokens [start, end), as `value_sum` has it: float32 [B, K, D]."""
        return numbers(self.stored_values[:, :, start:end]).sum(2)

    def _attend_to_all(self, queries: Tensor, scaling: float, softmax: Softmax, kept: DenseCache) -> Tensor:
        """Causal attention of the last tokens to all existing ones."""
        keys, values = self._seen(kept, queries.dtype)
        backend = serving("prefill", Facts.of(queries, keys, values))
        out, _ = backend.prefill(queries, keys, values, scaling, softmax=softmax)
        return out

    def uncoded(self) -> DenseCache:
        """The layer as the kernels take it without codes."""
        return DenseCache(
            self.stored_keys, self.stored_values, self.value_sum, self._extent.lengths, self.centre
        )

    def coded_for(self, mode: Mode) -> LayerCache | None:
        """The layer as the kernels take it with codes, if it attends sparsely in this mode."""
        return None if mode.sparse is None or self.codes is None else self.codes.layer

    def _append(self, keys: Tensor, values: Tensor, kept: DenseCache) -> None:
        start, end = self.length, self.length + keys.shape[2]
        if self.centre is not None and start == 0:
            self.centre.copy_(centre_of(keys))
        write(kept.keys[:, :, start:end], keys, self.centre)
        rows = kept.values[:, :, start:end]
        write(rows, values)
        self.value_sum += kept_sum(rows, values)
        self.length = end

    def _observe(self, queries: Tensor, of: int) -> None:
        """Note which coordinates are large in queries [B, H, N, D], a sample of this many, for the codebook.

        Also without codes in this layer: a stored document serves layers that have them.
        """
        kv_heads = self.stored_keys.shape[1]
        power = query_power(queries, kv_heads) * of
        self._power = power if self._power is None else self._power + power

    def count(self, new: int, mode: Mode) -> None:
        """See `Layer.count`; counts codes too if the mode is sparse."""
        self.length += new
        if self.codes is not None and self.coded_for(mode) is not None:
            self.codes.encoded = self.length

    def encode(self) -> None:
        """See `Layer.encode`. Without queries to fit a codebook to, there are no codes."""
        self._encode()

    def _encode(self, kept: DenseCache | None = None) -> None:
        """`encode`, from the keys in `kept`; None for the layer's own."""
        if self.codes is None or self._power is None:
            return
        kept = self.uncoded() if kept is None else kept
        dtype = torch.float32 if is_packed(kept.keys.dtype) else kept.keys.dtype

        keys = partial(_some, kept.keys, dtype, kept.centre)
        self.codes.encode(self.uncoded(), keys, self._power, self.length, self.capacity)

    def encode_again(self, sparse: Sparse) -> None:
        """See `Layer.encode_again`."""
        if self.codes is not None:
            self.codes.forget_fitting(sparse)
            self.encode()

    def reserve(self, capacity: int, limit: int) -> None:
        """See `Layer.reserve`; the limit only counts before there are tokens."""
        self._limit = max(self._limit, limit)
        self._grow(capacity)
        if capacity > self.capacity:
            self._widen(capacity)

    def make_room(self, new: int) -> None:
        """See `Layer.make_room`."""
        if self._placement.staging is not None:
            self._placement.staging.forget()
        end = self.length + new
        self._grow(end)
        if end > self.capacity:
            self._widen(max(end, self.capacity + self.capacity // 2))

    def _grow(self, tokens: int) -> None:
        """Get memory for the keys and values of this many tokens, once their shape is known."""
        if not self.is_initialized:
            return
        before = [buffer.tensor for buffer in self._buffers.values()]
        try:
            for buffer in self._buffers.values():
                buffer.grow(tokens, self.length)
        finally:  # one buffer may have moved before memory ran out for the other
            after = [buffer.tensor for buffer in self._buffers.values()]
            if any(one is not other for one, other in zip(before, after, strict=True)):
                if self.codes is not None:
                    self.codes.follow(self.stored_keys, self.stored_values)
                self._extent.version += 1

    def _widen(self, capacity: int) -> None:
        """Make room for this many tokens in everything except K and V."""
        if self.codes is not None:
            self.codes.widen(capacity)
        self.capacity = capacity  # last: memory may run out before

    def mark(self) -> FullMark:
        """See `Layer.mark`."""
        return self._marked(self.value_sum.clone() if self.is_initialized else None)

    def _marked(self, value_sum: Tensor | None) -> FullMark:
        """The mark with this copy of the sum of values."""
        codes = None if self.codes is None else self.codes.mark()
        return FullMark(self.length, value_sum, self._power, codes)

    def rewind(self, mark: FullMark) -> None:
        """See `Layer.rewind`."""
        if mark.value_sum is not None:
            self.value_sum.copy_(mark.value_sum)
        elif self.is_initialized:
            self.value_sum.zero_()
        self._rewind_rest(mark)

    def _rewind_rest(self, mark: FullMark) -> None:
        """Rewind all but the sum of values."""
        self.length, self._power = mark.length, mark.power
        self._forget_means()
        if self.codes is not None and mark.codes is not None:
            self.codes.rewind(mark.codes, self.length)

    def can_truncate(self, tokens: int) -> bool:
        """See `Layer.can_truncate`."""
        return tokens <= self.length

    def truncate(self, tokens: int) -> None:
        """See `Layer.truncate`. The sum of values is updated up to rounding; query statistics and codebook
        stay unchanged.
        """
        if self.is_initialized and tokens < self.length:
            self.value_sum -= self._sum_of_values(tokens, self.length)
        self._forget_after(tokens)

    def _forget_after(self, tokens: int) -> None:
        """Forget all but the first tokens, which are the only ones in the sum of values."""
        self.length = min(self.length, tokens)
        self._forget_means()
        if self.codes is not None:
            self.codes.truncate(tokens)

    def before_step(self) -> tuple[int, Tensor]:
        """See `Layer.before_step`: the number of tokens and the sum of their values."""
        return self.length, self.value_sum.clone()

    def retract(self, tokens: int, before: tuple[int, Tensor]) -> None:
        """See `Layer.retract`. The sum of values is restored, then the kept values are added one by one."""
        if tokens == self.length:
            return
        start, value_sum = before
        self.value_sum.copy_(value_sum)
        for value in numbers(self.stored_values[:, :, start:tokens]).unbind(2):
            self.value_sum += value
        self._forget_after(tokens)

    def _forget_means(self) -> None:
        """Drop means of tokens that no longer exist."""
        if self.means is not None:
            self.means.truncate(self.length)

    def empty_fork(self, extent: Extent) -> FullLayer:
        """An empty layer of the same kind."""
        sparse = None if self.codes is None else self.codes.sparse
        return FullLayer(extent, self._placement, sparse, reads=self.means is not None, formats=self.formats)

    def spare(self, extent: Extent, tokens: int) -> FullLayer:
        """See `Layer.spare`."""
        other = self.empty_fork(extent)
        other._placement = Allocated(tokens_first=self._placement.tokens_first)  # less than pages of its own
        other.capacity = tokens
        other.lazy_initialization(self.stored_keys[:, :, :0], self.stored_values[:, :, :0])
        if other.codes is not None and self.codes is not None:
            other.codes.spare_of(self.codes, other.uncoded(), tokens)
        for name in self.streams:
            other._buffers[name].tensor.zero_()
        return other

    def fork(self, extent: Extent) -> FullLayer:
        """See `Layer.fork`."""
        other = self.empty_fork(extent)
        other.capacity, other._limit = self.capacity, self._limit
        if not self.is_initialized:
            return other
        buffers = {name: buffer.fork(self.length) for name, buffer in self._buffers.items()}
        other._buffers = {name: buffer for name, buffer in buffers.items() if buffer is not None}
        other.lazy_initialization(self.stored_keys[:, :, :0], self.stored_values[:, :, :0])
        other.length = self.length
        for name in self.streams:
            if buffers[name] is None:
                tokens = self._buffers[name].tensor[:, :, : self.length]
                other._buffers[name].tensor[:, :, : self.length] = tokens
        other._copy_sums(self.value_sum, self.centre)
        other._power = self._power
        if other.codes is not None and self.codes is not None:
            other.codes.copy_of(self.codes, other.uncoded(), other.capacity)
        return other

    @property
    def packs(self) -> bool:
        """Whether its keys and values are in few bits."""
        return self.formats is not None and any(map(is_packed, self.formats))

    def join(self, other: Layer, start: int) -> None:
        """See `Layer.join`. Query statistics are those of both, and so count the other's first tokens too."""
        assert isinstance(other, FullLayer)
        old, new = self.length, other.length - start
        self.open({name: other._buffers[name].tensor[:, :, :0] for name in self.streams}, old + new)
        for name in self.streams:
            rows = other._buffers[name].tensor[:, :, start : other.length]
            self._buffers[name].tensor[:, :, old : old + new] = rows
        self.value_sum += other.value_sum - other._sum_of_values(0, start)
        self.length = old + new
        if other._power is not None:
            self._power = other._power if self._power is None else self._power + other._power

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """Keys and values in place, and copies of sums over all tokens so far, [K, D]."""
        parts = {
            **{name: self.place(name, start, end) for name in self.streams},
            "value_sum": self.value_sum[0].clone(),
        }
        if self.centre is not None:
            parts["centre"] = self.centre[0].clone()
        return parts if self._power is None else parts | {"power": self._power[0]}

    def open(self, empty: Mapping[str, Tensor], tokens: int) -> None:
        """See `Layer.open`."""
        self.reserve(tokens, 0)
        if not self.is_initialized:
            self.lazy_initialization(*(empty[name] for name in STREAMS))

    def place(self, name: str, start: int, end: int) -> Tensor:
        """See `Layer.place`."""
        return self._buffers[name].lying(start, end)

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`; the states are sums over the tokens."""
        self.length = tokens
        self._copy_sums(states["value_sum"], states.get("centre"))
        self._power = states["power"].unsqueeze(0) if "power" in states else None

    def _copy_sums(self, value_sum: Tensor, centre: Tensor | None) -> None:
        self.value_sum.copy_(value_sum)
        if self.centre is not None and centre is not None:
            self.centre.copy_(centre)

    def code_parts(self) -> dict[str, Tensor]:
        """See `Layer.code_parts`."""
        return {} if self.codes is None else self.codes.parts(self.length)

    def restored_codes(self, parts: Mapping[str, Tensor]) -> None:
        """See `Layer.restored_codes`."""
        if self.codes is not None:
            self.codes.restored(parts, self.uncoded(), self.length, self.capacity)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask for `query_length` new tokens spans."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens in the layer."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def mark_together(layers: Sequence[Layer]) -> list[Any]:
    """`Layer.mark` of each, in few launches for all."""
    alike: dict[torch.Size, list[FullLayer]] = {}
    for layer in layers:
        if isinstance(layer, FullLayer) and type(layer).mark is FullLayer.mark and layer.is_initialized:
            alike.setdefault(layer.value_sum.shape, []).append(layer)
    sums: dict[Layer, Tensor] = {}
    for same in alike.values():
        sums |= zip(same, torch.stack([layer.value_sum for layer in same]).unbind(), strict=True)
    return [
        layer._marked(sums[layer]) if isinstance(layer, FullLayer) and layer in sums else layer.mark()
        for layer in layers
    ]


def rewind_together(layers: Sequence[Layer], marks: Sequence[Any]) -> None:
    """Changes: `Layer.rewind` of each, in few launches for all."""
    summed = {
        layer: mark.value_sum
        for layer, mark in zip(layers, marks, strict=True)
        if isinstance(layer, FullLayer) and type(layer).rewind is FullLayer.rewind
        if mark.value_sum is not None
    }
    if summed:
        torch._foreach_copy_([layer.value_sum for layer in summed], list(summed.values()))
    for layer, mark in zip(layers, marks, strict=True):
        if isinstance(layer, FullLayer) and layer in summed:
            layer._rewind_rest(mark)
        else:
            layer.rewind(mark)


def truncate_together(layers: Sequence[FullLayer], tokens: int) -> None:
    """Changes: `FullLayer.truncate` of layers with as many tokens and unpacked rows, in few launches for all
    of them.
    """
    alike: dict[Any, list[FullLayer]] = {}
    for layer in layers:
        alike.setdefault((layer.value_sum.shape, layer.stored_values.dtype), []).append(layer)
    for same in alike.values():
        gone = torch.stack([layer.stored_values[:, :, tokens : layer.length] for layer in same])
        torch._foreach_sub_([layer.value_sum for layer in same], list(gone.sum(3, dtype=torch.float32)))
    for layer in layers:
        layer._forget_after(tokens)
