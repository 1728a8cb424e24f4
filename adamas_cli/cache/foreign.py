"""A layer that transformers keeps: linear attention, or full attention that Adamas does not serve."""

from __future__ import annotations

import copy
from typing import Any

from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.layer import Layer

# Attention layers grow by creating new tensors and never write into old ones, so their copies can share them.
_SHARED = (DynamicLayer, DynamicSlidingWindowLayer)


class ForeignLayer(Layer):
    """Its state can be copied and restored; nothing else is known of it.

    inner: transformers' layer, which `rewind` replaces.
    """

    def __init__(self, kind: str, inner: CacheLayerMixin) -> None:
        self.kind = kind
        self.inner = inner

    @property
    def shown(self) -> CacheLayerMixin:
        """See `Layer.shown`."""
        return self.inner

    def mark(self) -> Any:
        """See `Layer.mark`."""
        return _copy(self.inner)

    def rewind(self, mark: Any) -> None:
        """See `Layer.rewind`."""
        self.inner = _copy(mark)

    def fork(self, extent: Extent) -> ForeignLayer:
        """See `Layer.fork`."""
        return ForeignLayer(self.kind, _copy(self.inner))


def _copy(layer: Any) -> Any:
    return copy.copy(layer) if type(layer) in _SHARED else copy.deepcopy(layer)
