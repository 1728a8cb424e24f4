"""A layer that keeps nothing: an MLP or a mixture of experts that counts as a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import cache_utils

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.layer import Layer

# Versions of transformers that have a class for such layers recognize them by it.
_Known: type = getattr(cache_utils, "DummyLayer", object)


class StatelessLayer(Layer, _Known):
    """It keeps nothing of the tokens, so all its states are equal."""

    storable = True
    # Attributes that transformers reads from each layer of a cache.
    is_compileable = is_initialized = True
    is_sliding = False
    keys = values = None

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def mark(self) -> Any:
        """See `Layer.mark`."""
        return None

    def rewind(self, mark: Any) -> None:
        """See `Layer.rewind`."""

    def can_truncate(self, tokens: int) -> bool:
        """See `Layer.can_truncate`."""
        return True

    def truncate(self, tokens: int) -> None:
        """See `Layer.truncate`."""

    def fork(self, extent: Extent) -> StatelessLayer:
        """See `Layer.fork`."""
        return StatelessLayer(self.kind)

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`."""
