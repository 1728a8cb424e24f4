"""Limits on the reading process's resources, where the system supports them."""

from __future__ import annotations

import resource
from contextlib import suppress


def limit(kind: int, value: int) -> None:
    """Set the soft limit of a resource; macOS refuses a memory limit, which is ignored."""
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
