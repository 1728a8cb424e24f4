"""The number of threads that compute on a CPU."""

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


def use_threads(threads: int | None) -> int:
    """Let torch and the compiled kernels use this many threads; None for the user's environment
    (OMP_NUM_THREADS), else all physical cores. Returns the number in use.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    torch.set_num_threads(threads or physical_cores())
    return torch.get_num_threads()
