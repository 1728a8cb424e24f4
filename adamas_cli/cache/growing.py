"""Memory for one layer's keys or values, which grows with its tokens."""

from __future__ import annotations

import copy

from torch import Tensor

from adamas_cli.cache.forkable import empty_like, forked
from adamas_cli.cache.pages import empty_pages


class TokenBuffer:
    """Keys or values of one layer, uninitialized, like [B, K, N, D], with memory for `room` tokens.

    tokens_first: tokens are outermost in memory, so that it can grow at its end; otherwise heads are. forks:
    see `cache/forkable.py`.
    """

    def __init__(self, like: Tensor, room: int, *, tokens_first: bool, forks: bool = False) -> None:
        batch, heads, _, dim = like.shape
        self._like = like.new_empty(batch, heads, 0, dim)
        self._tokens_first = tokens_first
        shape = (room, batch, heads, dim) if tokens_first else (batch, heads, room, dim)
        whole = empty_like(like, shape, like.dtype) if forks else empty_pages(like, shape)
        self._tensor = whole.permute(1, 2, 0, 3) if tokens_first else whole

    @property
    def tensor(self) -> Tensor:
        """[B, K, S, D]; `grow` may replace it."""
        return self._tensor

    @property
    def room(self) -> int:
        """Tokens there is memory for."""
        return self._tensor.shape[2]

    def grow(self, tokens: int, kept: int) -> bool:
        """Make memory for this many tokens in all; returns whether the first `kept` ones have moved.

        Raises torch.OutOfMemoryError, or RuntimeError on a CPU, if there is none left.
        """
        if tokens <= self.room:
            return False
        self._move(tokens, kept)
        return True

    def fork(self, tokens: int) -> TokenBuffer | None:
        """Another buffer with the same first tokens, this many, in memory of its own only where it differs;
        None if that is impossible.
        """
        tensor = forked(self.tensor)
        if tensor is None:
            return None
        other = copy.copy(self)
        other._tensor = tensor
        return other

    def lying(self, start: int, end: int) -> Tensor:
        """Tokens [start, end) of a batch of one, in memory order: [n, K, D] if tokens are first, else [K, n,
        D].
        """
        part = self.tensor[0, :, start:end]
        return part.transpose(0, 1) if self._tokens_first else part

    def _move(self, tokens: int, kept: int) -> None:
        """Get other memory for at least this many tokens, with the first `kept` ones in it."""
        larger = self._larger(tokens)
        larger.tensor[:, :, :kept] = self.tensor[:, :, :kept]
        vars(self).update(vars(larger))  # at once, and last: an interruption must not leave a mix

    def _larger(self, tokens: int) -> TokenBuffer:
        """Another buffer for at least this many tokens."""
        room = max(tokens, self.room + self.room // 2)
        return TokenBuffer(self._like, room, tokens_first=self._tokens_first)
