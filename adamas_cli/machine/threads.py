"""The number of threads that compute on a CPU."""

from __future__ import annotations

from adamas_cli.machine.cores import environment_threads, physical_cores
from adamas_cli.machine.products import known


def use_threads(threads: int | None) -> int:
    """Let torch and the compiled kernels use this many threads; None for the user's environment, else for
    the fastest number that was measured. Returns the number in use.
    """
    import torch

    torch.set_num_threads(threads_for(threads))
    return torch.get_num_threads()


def threads_for(threads: int | None, processes: int = 1) -> int:
    """The threads of each of several processes that compute at once; threads: of all, None to choose."""
    chosen = threads or environment_threads() or known().threads or physical_cores()
    return max(1, chosen // processes)
