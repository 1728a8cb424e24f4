"""Layers with a state of fixed size at any length: linear attention, state spaces, convolutions.

The state is known only at the last token, so these layers can return only to marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.formats import Formats
from adamas_cli.cache.full import FullLayer, FullMark
from adamas_cli.cache.layer import HYBRID, Layer
from adamas_cli.cache.mode import Sparse
from adamas_cli.cache.placement import Placement

States = Mapping[str, Tensor]


class RecurrentLayer(Layer, LinearAttentionLayer):
    """transformers' layer of convolution windows and recurrent states, which models write in place.

    kind: by transformers' name. Once made, a state stays in place, so captured steps find it.
    """

    storable = True

    def __init__(self, kind: str, number_of_states: int, extent: Extent) -> None:
        LinearAttentionLayer.__init__(self, number_of_states)
        self.kind = kind
        self._extent = extent

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Allocate one of the states; called by transformers."""
        LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)
        self._extent.version += 1

    def mark(self) -> Any:
        """See `Layer.mark`."""
        return copies_of_states(self)

    def rewind(self, mark: Any) -> None:
        """See `Layer.rewind`."""
        put_states(self, mark)

    def fork(self, extent: Extent) -> RecurrentLayer:
        """See `Layer.fork`."""
        other = RecurrentLayer(self.kind, self.number_of_states, extent)
        put_states(other, copies_of_states(self))
        return other

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """Copies of the states at `end` tokens."""
        return copies_of_states(self)

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`."""
        put_states(self, states)


@dataclass(frozen=True)
class HybridMark:
    """The marks of both parts of a HybridLayer."""

    full: FullMark
    states: States


class HybridLayer(FullLayer, LinearAttentionLayer):
    """A layer that attends to all tokens and also has recurrent states."""

    kind = HYBRID

    def __init__(
        self,
        number_of_states: int,
        extent: Extent,
        placement: Placement,
        sparse: Sparse | None = None,
        *,
        reads: bool = False,
        formats: Formats | None = None,
    ) -> None:
        FullLayer.__init__(self, extent, placement, sparse, reads=reads, formats=formats)
        LinearAttentionLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Allocate keys and values (positional arguments) or one of the states (named arguments)."""
        if args:
            FullLayer.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)
            self._extent.version += 1

    def mark(self) -> Any:
        """See `Layer.mark`."""
        return HybridMark(super().mark(), copies_of_states(self))

    def rewind(self, mark: Any) -> None:
        """See `Layer.rewind`."""
        super().rewind(mark.full)
        put_states(self, mark.states)

    def can_truncate(self, tokens: int) -> bool:
        """See `Layer.can_truncate`."""
        return False

    def empty_fork(self, extent: Extent) -> HybridLayer:
        """See `FullLayer.empty_fork`."""
        sparse = None if self.codes is None else self.codes.sparse
        reads = self.means is not None
        return HybridLayer(
            self.number_of_states, extent, self._placement, sparse, reads=reads, formats=self.formats
        )

    def fork(self, extent: Extent) -> FullLayer:
        """See `Layer.fork`."""
        other = super().fork(extent)
        put_states(other, copies_of_states(self))
        return other

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """Keys and values, their sums, and copies of the states at `end` tokens."""
        return super().stored(start, end) | copies_of_states(self)

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`."""
        super().restored(tokens, states)
        put_states(self, {name: state for name, state in states.items() if _is_state(name)})


_KINDS = ("conv", "recurrent")  # of states, by the names of transformers' fields


def _is_state(name: str) -> bool:
    return name.partition(".")[0] in _KINDS


def copies_of_states(layer: Any) -> dict[str, Tensor]:
    """Copies of all used states of a transformers layer, by names such as `conv.0`."""
    return {
        f"{kind}.{index}": state.clone()
        for kind in _KINDS
        for index, state in getattr(layer, f"{kind}_states").items()
        if state is not None and layer.has_previous_state[index]
    }


def put_states(layer: Any, states: States) -> None:
    """Set a transformers layer to exactly these states, as returned by `copies_of_states`, in place."""
    layer.has_previous_state.update(dict.fromkeys(layer.has_previous_state, False))
    for name, state in states.items():
        kind, _, number = name.partition(".")
        index, field = int(number), f"{kind}_states"
        if getattr(layer, field)[index] is None:
            layer.lazy_initialization(**{field: state, "state_idx": index})
        getattr(layer, field)[index].copy_(state)
        layer.has_previous_state[index] = True
