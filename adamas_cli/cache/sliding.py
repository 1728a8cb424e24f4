"""A layer that attends to a window of the last tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.layer import SLIDING, Layer
from adamas_cli.cache.mode import Mode

Window = tuple[Tensor | None, Tensor | None, int]


class SlidingLayer(Layer, DynamicSlidingWindowLayer):
    """The last window. Its tensors are never written in place, so marks and copies are cheap."""

    kind = SLIDING
    storable = True

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None,
        scaling: float, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """Attention within the window; `update` has appended."""
        out, _ = sdpa_attention_forward(module, queries, keys, values, mask, scaling=scaling)
        return out.transpose(1, 2)

    def mark(self) -> Window:
        """See `Layer.mark`."""
        return self.keys, self.values, self.cumulative_length

    def rewind(self, mark: Window) -> None:
        """See `Layer.rewind`."""
        self.keys, self.values, self.cumulative_length = mark
        self.is_initialized = self.keys is not None

    def can_truncate(self, tokens: int) -> bool:
        """Where nothing has left the window since."""
        return tokens <= self.cumulative_length < self.sliding_window

    def truncate(self, tokens: int) -> None:
        """See `Layer.truncate`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[:, :, :tokens], self.values[:, :, :tokens]
        self.cumulative_length = min(self.cumulative_length, tokens)

    def fork(self, extent: Extent) -> SlidingLayer:
        """See `Layer.fork`."""
        return copy.copy(self)

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """The window at `end` tokens, [K, n, D]."""
        assert self.keys is not None
        assert self.values is not None
        return {"window_keys": self.keys[0], "window_values": self.values[0]}

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """See `Layer.restored`."""
        keys, values = (states[name].unsqueeze(0) for name in ("window_keys", "window_values"))
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.cumulative_length = keys, values, tokens
