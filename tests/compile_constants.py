"""Compiles functions that add constants, in the order of a seed, and exits with 1 if one adds another.

    python compile_constants.py SEED FOLDER PROCESSES

Begins when as many processes have a file in the folder, and writes code to disk slowly, so that processes
that do not wait for each other write at the same time.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adamas_kernels.cpu.build import stage
from numba import types
from numba.core import caching

COUNT = 8
SLOWLY = 0.1  # seconds at most


class SlowFile(caching.IndexDataCacheFile):
    """Writes late."""

    def _save_index(self, overloads: dict[Any, str]) -> None:
        time.sleep(random.uniform(0, SLOWLY))
        super()._save_index(overloads)

    def _save_data(self, name: str, data: Any) -> None:
        time.sleep(random.uniform(0, SLOWLY))
        super()._save_data(name, data)


def adding(number: int) -> Callable[[int], int]:
    """A compiled function that adds this number."""

    def add(x):
        return x + number

    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(stage(add, types.int64(types.int64)))


if __name__ == "__main__":
    caching.IndexDataCacheFile = SlowFile
    seed, folder, processes = sys.argv[1:]
    (Path(folder) / seed).touch()
    while len(list(Path(folder).iterdir())) < int(processes):
        time.sleep(0.01)
    numbers = list(range(COUNT))
    random.Random(int(seed)).shuffle(numbers)
    sys.exit(any(adding(number)(1) != 1 + number for number in numbers))
