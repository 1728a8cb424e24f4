"""The interface of a cache's layers to a timeline, whatever they keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from adamas_kernels.softmax import Softmax
from torch import Tensor, nn

from adamas_cli.cache.extent import Extent
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.models.recurrent import FULL as FULL
from adamas_cli.models.recurrent import HYBRID as HYBRID
from adamas_cli.models.recurrent import RECURRENT as RECURRENT
from adamas_cli.models.recurrent import SLIDING as SLIDING
from adamas_cli.models.recurrent import STATELESS as STATELESS

LATENT = "latent"  # layers of full attention that keep latents instead of heads


class Layer:
    """One layer. Methods that change it say so; those that a kind of layer does not need do nothing here.

    kind: by the names of `models.shape`, or transformers' name. storable: whether `stored` and `restored`
    cover its whole state.
    """

    kind: str
    storable = False
    is_shared = False  # whether other layers attend to its tokens
    capacity = 0  # tokens there is room for, if known

    @property
    def coded(self) -> bool:
        """Whether it may attend sparsely and keeps codes for that."""
        return False

    @property
    def shown(self) -> Any:
        """The object that transformers' models get."""
        return self

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """Attention of new tokens, queries [B, H, N, D], to all tokens including the new ones: [B, H, N, D].
        module: the model's attention module. keys, values: as returned by the layer's `update`. softmax: as
        the model requests it; the layer adds its window. May append the tokens.
        """
        raise NotImplementedError

    def reserve(self, capacity: int, limit: int) -> None:
        """Changes: room for `capacity` tokens in all, and for `limit` without copying."""

    def make_room(self, new: int) -> None:
        """Changes: makes room for this many more tokens."""

    def count(self, new: int, mode: Mode) -> None:
        """Changes: counts this many more tokens, which were written from outside."""

    def before_step(self) -> Any:
        """What `retract` needs to take back tokens of the next step. Changes nothing."""

    def retract(self, tokens: int, before: Any) -> None:
        """Changes: keeps only the first tokens of the last step, up to this many in all, as if the others had
        never come. Only where `can_truncate`.
        """
        self.truncate(tokens)

    def encode(self) -> None:
        """Changes: encodes tokens that have no codes yet."""

    def encode_again(self, sparse: Sparse) -> None:
        """Changes: encodes all tokens again with other settings."""

    def mark(self) -> Any:
        """What `rewind` needs to return to this point, any number of times. Changes nothing."""
        raise NotImplementedError

    def rewind(self, mark: Any) -> None:
        """Changes: forgets every token since `mark`."""
        raise NotImplementedError

    def can_truncate(self, tokens: int) -> bool:
        """Whether the layer can forget all but its first tokens, without a mark."""
        return False

    def truncate(self, tokens: int) -> None:
        """Changes: forgets all but the first tokens, where `can_truncate`."""
        raise NotImplementedError

    def fork(self, extent: Extent) -> Self:
        """A copy that continues independently, as a layer of the cache with this extent. Changes nothing."""
        raise NotImplementedError

    def spare(self, extent: Extent, tokens: int) -> Self:
        """An empty layer with the same kinds of buffers, for this many tokens. Changes nothing."""
        raise NotImplementedError

    def join(self, other: Layer, start: int) -> None:
        """Changes: appends the tokens of a layer of the same kind from `start` on; see `KVCache.join`."""
        raise NotImplementedError

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store of tokens [start, end), the last ones, by name. Changes nothing."""
        return {}

    def open(self, empty: Mapping[str, Tensor], tokens: int) -> None:
        """Changes: makes room for this many stored tokens, whose `STREAMS` are like these, [1, K, 0, D]."""

    def place(self, name: str, start: int, end: int) -> Tensor:
        """The place of keys or values of tokens [start, end), see `TokenBuffer.lying`."""
        raise NotImplementedError

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """Changes: this many tokens are now in place, with these states at the last one."""
        raise NotImplementedError

    def code_parts(self) -> dict[str, Tensor]:
        """Copies of all codes and their codebook, by name; empty without any. Changes nothing."""
        return {}

    def restored_codes(self, parts: Mapping[str, Tensor]) -> None:
        """Changes: these, as returned by `code_parts`, become the codes of all tokens."""
