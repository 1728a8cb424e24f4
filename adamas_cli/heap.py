"""Returns freed memory of this process to the system."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Return freed memory, such as that used for loading, if the C library can (glibc); else do nothing."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
