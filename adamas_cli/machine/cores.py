"""How many cores of this machine compute."""

from __future__ import annotations

import os


def physical_cores() -> int:
    """Cores that this process may use, counting two threads of one core once: matrix products gain nothing
    from the second.
    """
    import psutil

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, allowed))


def usual_threads() -> int:
    """The number in the user's environment (OMP_NUM_THREADS), else all physical cores."""
    return environment_threads() or physical_cores()


def environment_threads() -> int | None:
    """The number in OMP_NUM_THREADS, None without one."""
    number = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # one for each level of nesting
    return int(number) if number.isdecimal() and int(number) else None
