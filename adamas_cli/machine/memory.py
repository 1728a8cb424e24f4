"""The memory that this process may use."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes. available: without taking it from other programs."""

    total: int
    available: int


def memory() -> Memory:
    """The machine's memory, or a container's share of it."""
    import psutil

    found = psutil.virtual_memory()
    total, available = found.total, found.available
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # ValueError if it is `max`
        used = int((_CGROUP / "memory.current").read_text())
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)
