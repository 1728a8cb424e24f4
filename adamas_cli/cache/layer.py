"""What a timeline asks of each layer of its cache, whatever the layer keeps."""

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
    """One layer. Methods that change it say so; what a kind of layer has no need for does nothing here.

    kind: by the names of `models.shape`, or what transformers calls it. storable: whether `stored` and
    `restored` tell all that there is of it.
    """

    kind: str
    storable = False
    is_shared = False  # whether other layers attend to its tokens
    capacity = 0  # tokens that there is room for, where that is known

    @property
    def coded(self) -> bool:
        """Whether it may attend sparsely, and keeps codes for that."""
        return False

    @property
    def shown(self) -> Any:
        """The object that transformers' models get."""
        return self

    def attend(
        self, module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, scaling: float,
        softmax: Softmax, mode: Mode,
    ) -> Tensor:  # fmt: skip
        """Attention of new tokens, queries [B, H, N, D], to all that there are, new ones included: [B, H, N,
        D]. module: whose attention it is. keys, values: as the layer's `update` returned them. softmax: as
        the model asks for it; a window is the layer's. May append them.
        """
        raise NotImplementedError

    def reserve(self, capacity: int, limit: int) -> None:
        """Changes: room for `capacity` tokens in all, and for `limit` without copying."""

    def make_room(self, new: int) -> None:
        """Changes: room for this many tokens after those that are there."""

    def count(self, new: int, mode: Mode) -> None:
        """Changes: this many tokens more are there, which were written from outside."""

    def before_step(self) -> Any:
        """What `retract` needs to take back tokens of the step that comes next. Changes nothing."""

    def retract(self, tokens: int, before: Any) -> None:
        """Changes: of the tokens of the last step only the first ones stay, up to this many in all, and it is
        as if the others had never come, where `can_truncate`.
        """
        self.truncate(tokens)

    def encode(self) -> None:
        """Changes: codes of the tokens that have none yet."""

    def encode_again(self, sparse: Sparse) -> None:
        """Changes: codes of all tokens by other settings."""

    def mark(self) -> Any:
        """What `rewind` needs to return to this point, any number of times. Changes nothing."""
        raise NotImplementedError

    def rewind(self, mark: Any) -> None:
        """Changes: every token since `mark` is forgotten."""
        raise NotImplementedError

    def can_truncate(self, tokens: int) -> bool:
        """Whether the layer can forget all but its first tokens, without a mark."""
        return False

    def truncate(self, tokens: int) -> None:
        """Changes: all but the first tokens are forgotten, where `can_truncate`."""
        raise NotImplementedError

    def fork(self, extent: Extent) -> Self:
        """A copy that goes on by itself, as a layer of the cache with this extent. Changes nothing."""
        raise NotImplementedError

    def stored(self, start: int, end: int) -> dict[str, Tensor]:
        """What to store of tokens [start, end), the last ones, by name. Changes nothing."""
        return {}

    def open(self, empty: Mapping[str, Tensor], tokens: int) -> None:
        """Changes: room for this many stored tokens, whose `STREAMS` are like these, [1, K, 0, D]."""

    def place(self, name: str, start: int, end: int) -> Tensor:
        """Where keys or values of tokens [start, end) belong, see `TokenBuffer.lying`."""
        raise NotImplementedError

    def restored(self, tokens: int, states: Mapping[str, Tensor]) -> None:
        """Changes: this many tokens are in their places, with these states at the last one."""
        raise NotImplementedError

    def code_parts(self) -> dict[str, Tensor]:
        """Copies of all codes and their codebook, by name; empty without any. Changes nothing."""
        return {}

    def restored_codes(self, parts: Mapping[str, Tensor]) -> None:
        """Changes: these, as `code_parts` gave them, are the codes of all tokens."""
