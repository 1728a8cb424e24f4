"""Where keys and values are placed, and in which order. The cache is told; it does not ask the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from adamas_kernels.hot import LEAST_STEPS
from torch import Tensor

from adamas_cli.cache.forkable import MAPS_FILES
from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.hosted import HostBuffer, HostRows
from adamas_cli.cache.mapped import PAGE, MappedBuffer, maps_memory
from adamas_cli.cache.staging import Staging


class Placement(Protocol):
    """Makes the buffers of a cache. tokens_first: see `TokenBuffer`."""

    @property
    def tokens_first(self) -> bool:
        """Whether tokens are outermost in memory."""
        ...

    @property
    def staging(self) -> Staging | None:
        """Where keys and values are while many tokens attend to all of them; None for their buffers."""
        ...

    def buffer(self, like: Tensor, room: int, limit: int = 0) -> TokenBuffer:
        """A buffer for keys or values like [B, K, N, D]: memory for `room` tokens and, if possible, addresses
        for `limit`, up to which nothing is copied.
        """
        ...

    def buffers(self, likes: Mapping[str, Tensor], room: int, limit: int = 0) -> dict[str, TokenBuffer]:
        """The same for all parts of a layer, by their names."""
        ...


@dataclass(frozen=True)
class Allocated:
    """Memory of torch's allocator: growing beyond `room` copies."""

    tokens_first: bool = False

    @property
    def staging(self) -> Staging | None:
        """See `Placement.staging`."""
        return None

    def buffer(self, like: Tensor, room: int, limit: int = 0) -> TokenBuffer:
        """See `Placement.buffer`."""
        return TokenBuffer(like, room, tokens_first=self.tokens_first)

    def buffers(self, likes: Mapping[str, Tensor], room: int, limit: int = 0) -> dict[str, TokenBuffer]:
        """See `Placement.buffers`."""
        return {name: self.buffer(like, room, limit) for name, like in likes.items()}


@dataclass(frozen=True)
class Paged(Allocated):
    """CPU memory: the operating system promises addresses and provides pages when they are used. forks: in
    memory that forks share.
    """

    forks: bool = False

    def buffer(self, like: Tensor, room: int, limit: int = 0) -> TokenBuffer:
        """See `Placement.buffer`."""
        if limit > room:
            try:
                return TokenBuffer(like, limit, tokens_first=self.tokens_first, forks=self.forks)
            except RuntimeError:  # a system that does not overcommit memory
                pass
        return TokenBuffer(like, room, tokens_first=self.tokens_first, forks=self.forks)


@dataclass(frozen=True)
class Mapped(Allocated):
    """Memory of an NVIDIA GPU, mapped to addresses reserved in advance. forks: even if it need not grow,
    since forks can share it.
    """

    tokens_first: bool = True
    forks: bool = False

    def buffer(self, like: Tensor, room: int, limit: int = 0) -> TokenBuffer:
        """See `Placement.buffer`."""
        if limit > room or self.forks:
            try:
                return MappedBuffer(like, room, max(limit, room), forks=self.forks)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # some virtual GPUs claim support and lack it
                pass
        return super().buffer(like, room)


@dataclass(frozen=True)
class Hosted:
    """Host memory, which a GPU reads in place for chosen tokens, and through `staging` for all. copied_steps:
    whose chosen tokens it keeps.
    """

    staging: Staging
    copied_steps: int = LEAST_STEPS
    tokens_first: bool = field(default=True, init=False)

    def buffer(self, like: Tensor, room: int, limit: int = 0) -> TokenBuffer:
        """See `Placement.buffer`; growing beyond `room` copies."""
        return HostBuffer(HostRows([like], room), 0)

    def buffers(self, likes: Mapping[str, Tensor], room: int, limit: int = 0) -> dict[str, TokenBuffer]:
        """See `Placement.buffers`."""
        rows = HostRows(list(likes.values()), room)
        return {name: HostBuffer(rows, part) for part, name in enumerate(likes)}


def placement_on(device: torch.device, *, forks: bool = False) -> Placement:
    """The best placement on a device. forks: for a cache that others will fork.

    Tokens first is as fast on a GPU, or faster. CPUs read the keys of one head in a row, and full attention
    took a quarter longer with tokens first (docs/performance.md).
    """
    if device.type == "cuda":
        return Mapped(forks=forks) if maps_memory(device) else Allocated(tokens_first=True)
    return Paged(forks=forks) if device.type == "cpu" else Allocated()


def shares_memory(placement: Placement) -> bool:
    """Whether a fork of a cache with this placement takes memory only for its own tokens."""
    if isinstance(placement, Paged):
        return placement.forks and MAPS_FILES
    return isinstance(placement, Mapped) and placement.forks


def fork_pages(placement: Placement) -> int:
    """Bytes of whole pages that keys or values of a fork of one layer take besides its own tokens."""
    return 2 * PAGE if isinstance(placement, Mapped) else 0


def by_head(lying: Tensor, placement: Placement) -> Tensor:
    """Keys or values in `TokenBuffer.lying` order, as [K, n, D]; also the inverse."""
    return lying.transpose(0, 1) if placement.tokens_first else lying
