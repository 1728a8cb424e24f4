"""Reports that Triton compiles when that takes noticeable time: the first time on a machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NOTICED_AFTER = 1.0  # seconds; a kernel compiled earlier loads in less
LINE = "compiling GPU kernels, which are kept for the next time"


@contextmanager
def announced_compiling(announce: Callable[[str], None]) -> Iterator[None]:
    """A scope that announces a line for each kernel that is compiled, not loaded from disk.

    Triton's hooks around a compilation tell when it starts and ends; existing hooks still run.
    """
    from triton import knobs

    runtime = knobs.runtime
    before, after = runtime.jit_cache_hook, runtime.jit_post_compile_hook
    timers: list[threading.Timer] = []

    def started(*args: Any, **kwargs: Any) -> Any:
        timer = threading.Timer(NOTICED_AFTER, announce, [LINE])
        timer.daemon = True
        timer.start()
        timers.append(timer)
        return before(*args, **kwargs) if before else None

    def ended(*args: Any, **kwargs: Any) -> Any:
        while timers:
            timers.pop().cancel()
        return after(*args, **kwargs) if after else None

    runtime.jit_cache_hook, runtime.jit_post_compile_hook = started, ended
    try:
        yield
    finally:
        for timer in timers:  # of a compilation that failed
            timer.cancel()
        runtime.jit_cache_hook, runtime.jit_post_compile_hook = before, after
