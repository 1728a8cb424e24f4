"""The folders of adamas: its cache and its state."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`ADAMAS_CACHE_DIR`, or the user's cache directory."""
    chosen = os.environ.get("ADAMAS_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("adamas")


def state_directory() -> Path:
    """The user's state directory, for example for the chat history."""
    from platformdirs import user_state_path

    return user_state_path("adamas")
