"""Limits of what the reading process may take, where the system has them."""

from __future__ import annotations

import resource
from contextlib import suppress


def limit(kind: int, value: int) -> None:
    """Set the soft limit of a resource; macOS refuses that of memory, and nothing happens there."""
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
