"""A layer that attends to another layer's keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adamas_kernels.softmax import Softmax
from torch import Tensor, nn

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.layer import Layer
from adamas_cli.cache.mode import Mode
from adamas_cli.cache.sliding import SlidingLayer


class SharedLayer(Layer):
    """It has only queries. index: of the earlier layer of the same kind whose tokens it attends to."""

    storable = True

    def __init__(self, kind: str, index: int) -> None:
        self.kind, self._index = kind, index
        self._source: FullLayer | SlidingLayer

    def follow(self, kept: Sequence[Layer]) -> None:
        """Changes: attends to a layer of this cache."""
        source = kept[self._index]
        assert isinstance(source, FullLayer | SlidingLayer)
        source.is_shared = True
        self._source = source

    @property
    def shown(self) -> Any:
        """See `Layer.shown`."""
        return self._source.shown

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """See `Layer.attend`; the other layer has already appended this pass's tokens."""
        return self._source.attend_again(queries, keys, values, scaling, softmax, mode)

    def mark(self) -> None:
        """See `Layer.mark`."""

    def rewind(self, mark: None) -> None:
        """See `Layer.rewind`."""

    def can_truncate(self, tokens: int) -> bool:
        """See `Layer.can_truncate`."""
        return True

    def truncate(self, tokens: int) -> None:
        """See `Layer.truncate`."""

    def fork(self, extent: Extent) -> SharedLayer:
        """See `Layer.fork`; the copy follows no layer yet."""
        return SharedLayer(self.kind, self._index)

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`."""
