"""Memory of this process: when garbage is looked for, and what goes back to the system."""

from __future__ import annotations

import ctypes
import gc

_WHILE_IMPORTING = 100_000, 10, 10  # thresholds of Python's collector
_usual: tuple[int, int, int] | None = None  # its own ones, while they are replaced


def collect_seldom() -> None:
    """Let a command's process look for garbage seldom until `exclude_imported`: imports create more than a
    million objects that live as long as it does, and looking through them takes a fifth of their time.
    """
    global _usual
    _usual = gc.get_threshold()
    gc.set_threshold(*_WHILE_IMPORTING)


def exclude_imported() -> None:
    """Imports are done: collect as usual again, but leave out all objects that exist now. Does nothing in
    other people's processes, which have not called `collect_seldom`.
    """
    global _usual
    if _usual is not None:
        gc.set_threshold(*_usual)
        gc.freeze()
        _usual = None


def give_back() -> None:
    """Return freed memory, such as that used for loading, if the C library can (glibc); else do nothing."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)
