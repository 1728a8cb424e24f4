"""The threads that torch computes with, for compiled functions: torch's own OpenMP library calls those too.

numba's threads would be others, and threads of one team that wait would take cores from the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


@cache
def _parallel() -> Callable[[int, int, int, int], None]:
    """OpenMP's function (function, argument, threads, flags), by the name that GCC gave it; LLVM's library
    has it too.
    """
    library = ctypes.CDLL(torch._C.__file__)  # finds what the libraries that torch needs define
    function = library.GOMP_parallel
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    function.restype = None
    return function


def together(function: int, argument: int, threads: int) -> None:
    """Call a function, by its address, on this many threads with the same int64, and wait for all of them."""
    _parallel()(function, argument, threads, 0)
