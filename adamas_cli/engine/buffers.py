"""Memory for the keys or values of one layer, which grows where it lies.

A buffer that may grow spans addresses for all tokens that there may come to be; memory comes with the tokens.
On a CPU the operating system does that by itself, page by page, and on an NVIDIA GPU `mapped.py`. Elsewhere,
and beyond those addresses, what is there is copied into a larger buffer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adamas_cli.engine.mapped import MappedMemory, maps_memory


def tokens_first(device: torch.device) -> bool:
    """Whether tokens are outermost in memory, so that it can grow at its end; else heads are.

    That is as fast on a GPU, or faster. CPUs read the keys of one head in a row, and full attention took a
    quarter longer without (docs/performance.md).
    """
    return device.type == "cuda"


def by_head(lying: Tensor) -> Tensor:
    """Keys or values as `TokenBuffer.lying` gives them, as [K, n, D]; and the other way round."""
    return lying.transpose(0, 1) if tokens_first(lying.device) else lying


def token_buffer(like: Tensor, room: int, limit: int) -> TokenBuffer:
    """A buffer for keys or values like [B, K, N, D]: memory for `room` tokens, addresses for `limit`."""
    if limit > room and maps_memory(like.device):
        try:
            return MappedBuffer(like, room, limit)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # some virtual GPUs say that they can and do not
            pass
    if limit > room and like.device.type == "cpu":
        try:
            return TokenBuffer(like, limit)
        except RuntimeError:  # a system that promises no more memory than it has
            pass
    return TokenBuffer(like, room)


class TokenBuffer:
    """Keys or values of one layer, uninitialized.

    tensor: [B, K, S, D], which `grow` may replace.
    """

    def __init__(self, like: Tensor, room: int) -> None:
        batch, heads, _, dim = like.shape
        self._like = like.new_empty(batch, heads, 0, dim)
        self.tensor = _empty(like, room)

    @property
    def room(self) -> int:
        """Tokens that there is memory for."""
        return self.tensor.shape[2]

    def grow(self, tokens: int, kept: int) -> bool:
        """Memory for so many tokens in all; whether the first ones, `kept` of them, are elsewhere now.

        Raises torch.OutOfMemoryError, or RuntimeError on a CPU, where there is none left.
        """
        if tokens <= self.room:
            return False
        larger = self._larger(tokens)
        larger.tensor[:, :, :kept] = self.tensor[:, :, :kept]
        vars(self).update(vars(larger))  # at once, and last: an interruption must find either
        return True

    def lying(self, start: int, end: int) -> Tensor:
        """Tokens [start, end) of a batch of one, in the order in which they lie in memory: [n, K, D] where
        `tokens_first`, else [K, n, D].
        """
        part = self.tensor[0, :, start:end]
        return part.transpose(0, 1) if tokens_first(part.device) else part

    def _larger(self, tokens: int) -> TokenBuffer:
        """Another buffer for so many tokens and more."""
        return TokenBuffer(self._like, max(tokens, self.room + self.room // 2))


class MappedBuffer(TokenBuffer):
    """The same on an NVIDIA GPU, where up to `limit` tokens are never copied."""

    def __init__(self, like: Tensor, room: int, limit: int) -> None:
        batch, heads, _, dim = like.shape
        self._like = like.new_empty(batch, heads, 0, dim)
        memory = MappedMemory(like.device, limit * self._token_bytes)
        memory.grow(max(1, room) * self._token_bytes)
        numbers = memory.tensor()[: limit * self._token_bytes].view(like.dtype)
        self.tensor = numbers.view(limit, batch, heads, dim).permute(1, 2, 0, 3)
        self._memory = memory
        self._note_room()

    @property
    def room(self) -> int:
        """Tokens that there is memory for."""
        return self._room

    def grow(self, tokens: int, kept: int) -> bool:
        """See `TokenBuffer.grow`."""
        if tokens <= self._room:  # asked at every token
            return False
        if tokens > self.tensor.shape[2]:
            return super().grow(tokens, kept)
        self._memory.grow(tokens * self._token_bytes)
        self._note_room()
        return False

    def _larger(self, tokens: int) -> TokenBuffer:
        return MappedBuffer(self._like, tokens, 2 * tokens)

    def _note_room(self) -> None:
        self._room = min(self.tensor.shape[2], self._memory.room // self._token_bytes)

    @property
    def _token_bytes(self) -> int:
        batch, heads, _, dim = self._like.shape
        return math.prod((batch, heads, dim)) * self._like.element_size()


def _empty(like: Tensor, tokens: int) -> Tensor:
    """Uninitialized [B, K, tokens, D] in the order of this device."""
    batch, heads, _, dim = like.shape
    if tokens_first(like.device):
        return like.new_empty(tokens, batch, heads, dim).permute(1, 2, 0, 3)
    return like.new_empty(batch, heads, tokens, dim)
