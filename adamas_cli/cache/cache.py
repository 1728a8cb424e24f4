"""All layers of one timeline's cache, in the form transformers' models expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.foreign import ForeignLayer
from adamas_cli.cache.formats import Formats
from adamas_cli.cache.full import FullLayer, mark_together, rewind_together, truncate_together
from adamas_cli.cache.latent import LatentLayer
from adamas_cli.cache.layer import FULL, HYBRID, RECURRENT, SLIDING, STATELESS, Layer
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.cache.names import split_name
from adamas_cli.cache.placement import Placement
from adamas_cli.cache.recurrent import HybridLayer, RecurrentLayer
from adamas_cli.cache.shared import SharedLayer
from adamas_cli.cache.sliding import SlidingLayer
from adamas_cli.cache.stateless import StatelessLayer
from adamas_cli.cache.tally import Tally
from adamas_cli.models.shape import shape_of_config
from adamas_cli.settings import DENSE_LAYERS


class CacheMark(NamedTuple):
    """A state of a cache to return to: that of each layer, and `Extent.shift`."""

    layers: list[Any]
    shift: int


@dataclass(frozen=True)
class Root:
    """Forks whose roots have the same id have the same first tokens, as many as the smaller root counts."""

    id: object
    tokens: int


RETRACTING = {FULL, SLIDING}  # kinds of layers that can cheaply forget their last tokens


class KVCache(DynamicCache):
    """One object for each layer of the model. transformers sees them as `layers`, timelines as `kept`.

    extent: the token count, as the device knows it. placement: of keys and values. sparse_from: the first
    token that was read sparsely; None if none was. root: what it shares with other forks of the same cache.
    """

    sparse_from: int | None = None
    root: Root | None = None

    def __init__(
        self, kept: Sequence[Layer], extent: Extent, placement: Placement, sparse: Sparse | None
    ) -> None:
        self.kept = list(kept)
        for layer in kept:
            if isinstance(layer, SharedLayer):
                layer.follow(kept)
        Cache.__init__(self, layers=[layer.shown for layer in kept])
        self.extent = extent
        self.placement = placement
        self.tally: Tally | None = None
        self._sparse = sparse
        self._forked: Root | None = None  # what the forks share with this cache
        self._updated: Layer | None = None

    @classmethod
    def for_model(
        cls,
        config: PreTrainedConfig,
        *,
        served: bool,
        sparse: Sparse | None,
        dense_layers: int,
        placement: Placement,
        device: torch.device,
        reads: bool = False,
        formats: Formats | None = None,
        hosted: Placement | None = None,
    ) -> Self:
        """The cache for a text model's config. served: whether its layers attend through this module's; if
        not, transformers keeps all of them. sparse: how all but the first `dense_layers` may choose tokens.
        reads: whether all but the first DENSE_LAYERS may read sparsely. formats: of keys and values in full
        layers, except latents; None to keep the model's own. hosted: the placement in all but the first
        `dense_layers` of these layers, if another.
        """
        extent = Extent(torch.zeros(1, dtype=torch.int32, device=device))
        if not served:
            inner = DynamicCache(config=config).layers
            return cls([ForeignLayer("foreign", layer) for layer in inner], extent, placement, None)
        kept: list[Layer] = []
        states = getattr(config, "number_of_conv_states", 1)
        for index, shape in enumerate(shape_of_config(config).by_layer):
            kind, chooses = shape.kind, sparse if index >= dense_layers else None
            skips = reads and index >= DENSE_LAYERS
            place = placement if hosted is None or index < dense_layers else hosted
            if shape.shares is not None:
                kept.append(SharedLayer(kind, shape.shares))
            elif kind == SLIDING and shape.window is not None:
                kept.append(SlidingLayer(shape.window, extent, placement))
            elif kind == FULL and shape.latent:
                kept.append(LatentLayer(config.kv_lora_rank, extent, placement, chooses))
            elif kind == FULL:
                kept.append(FullLayer(extent, place, chooses, reads=skips, formats=formats))
            elif kind == HYBRID:
                kept.append(HybridLayer(states, extent, place, chooses, reads=skips, formats=formats))
            elif kind in RECURRENT:
                kept.append(RecurrentLayer(kind, states, extent))
            elif kind in STATELESS:
                kept.append(StatelessLayer(kind))
            else:
                raise ValueError(f"layer {index} is of kind {kind}")
        return cls(kept, extent, placement, sparse)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by transformers' models before a layer attends; see `attending`."""
        self._updated = self.kept[layer_idx]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def attending(self, module: Any) -> Layer:
        """The layer that attends now: the last one updated, if no other has attended since; else the layer of
        the model's module. A module that serves several layers knows the index of none.
        """
        layer, self._updated = self._updated, None
        return self.kept[module.layer_idx] if layer is None else layer

    @property
    def is_dummy(self) -> list[bool]:
        """Which layers keep nothing: newer versions of transformers look for lengths in the others."""
        return [layer.kind in STATELESS for layer in self.kept]

    @property
    def kinds(self) -> set[str]:
        """The kinds of its layers."""
        return {layer.kind for layer in self.kept}

    @property
    def staged(self) -> bool:
        """Whether full attention brings keys and values from host memory, for which the host must wait."""
        return any(isinstance(layer, FullLayer) and layer.staged for layer in self.kept)

    @property
    def storable(self) -> bool:
        """Whether the store can keep and bring back what is in it."""
        return all(layer.storable for layer in self.kept)

    @property
    def capacity(self) -> int:
        """Tokens there is room for, in layers that know."""
        return max((layer.capacity for layer in self.kept), default=0)

    @property
    def dense_tokens(self) -> int:
        """Leading tokens that were read densely."""
        length = self.get_seq_length()
        return length if self.sparse_from is None else min(length, self.sparse_from)

    def begin_answer(self, mode: Mode) -> None:
        """Changes: prepares an answer in this mode, with codes of all tokens and an empty tally."""
        if mode.sparse is not None:
            self.encode()
        if mode.tally is not None:
            mode.tally.counts.zero_()
        self.extent.lengths.fill_(self.get_seq_length())

    def advance(self, tokens: int, mode: Mode) -> None:
        """Changes: counts the tokens of a pass that went through all layers, on the device too, and notes how
        they were read.
        """
        if mode.read is not None and self.sparse_from is None:
            self.sparse_from = self.get_seq_length() - tokens
        if mode.answers:
            self.extent.lengths += tokens

    def count_attention(self) -> None:
        """Changes: starts a tally of what answers attend to."""
        if self._sparse is not None:
            self.tally = Tally(self.capacity, self.extent.lengths.device)

    def encode(self) -> None:
        """Changes: encodes all tokens. The codebooks fitted here serve all later questions."""
        for layer in self.kept:
            layer.encode()

    def encode_again(self, sparse: Sparse) -> None:
        """Changes: encodes all tokens again with other settings."""
        self._sparse = sparse
        for layer in self.kept:
            layer.encode_again(sparse)

    def reserve(self, capacity: int, limit: int = 0) -> None:
        """Changes: room for `capacity` tokens in all, and for `limit` without copying keys and values."""
        for layer in self.kept:
            layer.reserve(capacity, limit)
        self._widen_tally()

    def make_room(self, tokens: int) -> None:
        """Changes: makes room for this many more tokens in every layer."""
        for layer in self.kept:
            layer.make_room(tokens)
        self._widen_tally()

    def _widen_tally(self) -> None:
        if self.tally is not None and self.tally.widen(self.capacity):
            self.extent.version += 1

    def count(self, new: int, mode: Mode) -> None:
        """Changes: counts this many more tokens, which a step wrote without calling these layers."""
        for layer in self.kept:
            layer.count(new, mode)

    @property
    def retracts(self) -> bool:
        """Whether tokens of the last step can be taken back cheaply."""
        return self.kinds <= RETRACTING

    def before_step(self) -> list[Any]:
        """What `retract` needs to take back tokens of the next step."""
        return [layer.before_step() for layer in self.kept]

    def retract(self, tokens: int, before: list[Any]) -> None:
        """Changes: keeps only the first tokens of the last step, up to this many in all, as if the others had
        never come. Only where it `retracts`.
        """
        if tokens == self.get_seq_length():
            return
        for layer, its in zip(self.kept, before, strict=True):
            layer.retract(tokens, its)
        self.extent.lengths.fill_(tokens)

    @property
    def unretractable(self) -> str | None:
        """Why `retract_in_place` does not serve it, in a few words; None if it does."""
        return self.not_plain(FullLayer, SlidingLayer)

    def retract_in_place(self, tokens: int) -> None:
        """Changes: the same, for GPUs: in few launches, and captured steps stay valid. Sums of values are
        those of the other tokens up to rounding. Only if not `unretractable`.
        """
        if tokens == self.get_seq_length():
            return
        truncate_together([layer for layer in self.kept if isinstance(layer, FullLayer)], tokens)
        for layer in self.kept:
            layer.truncate(tokens)
        self.extent.lengths.fill_(tokens)

    def mark(self) -> CacheMark:
        """The current state, for `rewind`, any number of times."""
        return CacheMark(mark_together(self.kept), self.extent.shift)

    def rewind(self, mark: CacheMark) -> None:
        """Changes: forgets every token since `mark`, in every layer."""
        rewind_together(self.kept, mark.layers)
        self.extent.place(mark.shift)
        self._show()

    def can_truncate(self, tokens: int) -> bool:
        """Whether it can forget all but the first tokens, without a mark. Where documents were joined, only
        marks know the positions of earlier tokens.
        """
        return not self.extent.shift and all(layer.can_truncate(tokens) for layer in self.kept)

    def truncate(self, tokens: int) -> None:
        """Changes: forgets all but the first tokens, where `can_truncate`; see `FullLayer.truncate`."""
        for layer in self.kept:
            layer.truncate(tokens)
        self._show()

    def not_plain(self, *types: type[Layer]) -> str | None:
        """Why it does not keep whole numbers on the model's device in layers of these types only, in a few
        words; None if it does.
        """
        others = sorted({layer.kind for layer in self.kept if type(layer) not in types})
        if others or not self.kept:
            return f"it has layers of kind {' and '.join(others)}"
        if any(isinstance(layer, FullLayer) and layer.packs for layer in self.kept):
            return "its keys and values are in few bits"
        return "its keys and values are in host memory" if self.staged else None

    @property
    def unjoinable(self) -> str | None:
        """Why it cannot `join` others, in a few words; None if it can."""
        return self.not_plain(FullLayer)

    def join(self, other: KVCache, start: int) -> None:
        """Changes: appends the tokens of another cache of the same model from `start` on. They keep their
        positions, and the next token comes after the last position in either. Only if not `unjoinable`.

        The codes do not cover the new tokens until `encode`. An interruption leaves some layers longer.
        """
        before, end = self.get_seq_length(), other.get_seq_length()
        after = max(self.extent.position(before), other.extent.position(end))
        for layer, its in zip(self.kept, other.kept, strict=True):
            layer.join(its, start)
        if self.sparse_from is None and other.dense_tokens < end:
            self.sparse_from = before + max(0, other.dense_tokens - start)
        self.tell_length()
        self.extent.place(self.get_seq_length() - after)
        self._widen_tally()

    def fork(self) -> KVCache:
        """A copy that continues independently."""
        extent = self.extent.fork()
        other = KVCache([layer.fork(extent) for layer in self.kept], extent, self.placement, self._sparse)
        other.sparse_from = self.sparse_from
        length = self.get_seq_length()
        self._forked = self._forked or Root(object(), 0)
        self._forked = replace(self._forked, tokens=max(self._forked.tokens, length))
        other.root = replace(self._forked, tokens=length)
        if self.tally is not None:
            other.count_attention()
        return other

    def tell_length(self) -> None:
        """Changes: tells the device how many tokens there are, after steps that kept the count elsewhere."""
        self.extent.lengths.fill_(self.get_seq_length())

    def _show(self) -> None:
        """Show transformers and the device the layers after tokens were forgotten."""
        length = self.get_seq_length()
        if self.dense_tokens == length:
            self.sparse_from = None
        if self.root is not None and length < self.root.tokens:
            self.root = replace(self.root, tokens=length)
        if self._forked is not None and length < self._forked.tokens:
            self._forked = None  # later forks may differ from earlier ones
        self.layers[:] = [layer.shown for layer in self.kept]
        self.tell_length()

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store of tokens [start, end), the last ones read, by names such as `3.keys`. It does not
        change when more tokens are read.
        """
        return {
            f"{index}.{name}": part
            for index, layer in enumerate(self.kept)
            for name, part in layer.stored(start, end).items()
        }

    def open(
        self, shapes: Mapping[str, tuple[torch.dtype, tuple[int, int]]], length: int, device: torch.device
    ) -> None:
        """Changes: makes room for this many stored tokens. shapes: number format, heads and width of keys and
        values.
        """
        empty = {
            name: torch.empty(1, heads, 0, dim, dtype=dtype, device=device)
            for name, (dtype, (heads, dim)) in shapes.items()
        }
        by_layer = _by_layer(empty)
        for index, layer in enumerate(self.kept):
            layer.open(by_layer.get(index, {}), length)

    def place(self, name: str, start: int, end: int) -> Tensor:
        """The place of keys or values of tokens [start, end), after `open`; see `TokenBuffer.lying`."""
        index, part = split_name(name)
        return self.kept[index].place(part, start, end)

    def restored(self, length: int, states: Mapping[str, Tensor]) -> None:
        """Changes: this many tokens are now in place, with these states at the last one."""
        by_layer = _by_layer(states)
        for index, layer in enumerate(self.kept):
            layer.restored(length, by_layer.get(index, {}))
        self.extent.lengths.fill_(length)

    @property
    def coding(self) -> dict[str, Any] | None:
        """What codes depend on besides the keys and queries; None without codes."""
        if self._sparse is None:
            return None
        settings = self._sparse.settings
        return {
            "backend": self._sparse.backend.name,
            "layers": [index for index, layer in enumerate(self.kept) if layer.coded],
            "edge": settings.edge,
            "centred": settings.centred,
            "balanced": settings.balanced,
        }

    def codes(self) -> dict[str, Tensor]:
        """Copies of the codes of all tokens, by names such as `3.codes`."""
        return {
            f"{index}.{name}": part
            for index, layer in enumerate(self.kept)
            for name, part in layer.code_parts().items()
        }

    def restored_codes(self, parts: Mapping[str, Tensor]) -> None:
        """Changes: these, as returned by `codes`, become the codes of all tokens in the cache."""
        for index, layer_parts in _by_layer(parts).items():
            self.kept[index].restored_codes(layer_parts)


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The kind of each layer, by transformers' names; models that name none have full attention."""
    return [layer.kind for layer in shape_of_config(config).by_layer]


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Each layer's tensors, by the layer's own names for them."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, part = split_name(name)
        layers.setdefault(index, {})[part] = tensor
    return layers
