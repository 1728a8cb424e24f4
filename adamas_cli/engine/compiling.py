"""Reports that Triton compiles when that takes noticeable time: the first time on a machine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

NOTICED_AFTER = 1.0  # seconds; a kernel compiled earlier loads in less
LINE = "compiling GPU kernels, which are kept for the next time"


_announcers: list[Callable[[str], None]] = []  # of the scopes entered, the innermost last
_timers: list[threading.Timer] = []  # of compilations under way


class Announcing:
    """A scope that announces a line for each kernel that is compiled, not loaded from disk. Cheap to enter:
    that happens for every token.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce

    def __enter__(self) -> None:
        _hook()
        _announcers.append(self._announce)

    def __exit__(self, *error: object) -> None:
        _announcers.pop()
        if not _announcers:
            _cancel()


def _cancel() -> None:
    """No compilation is under way any more; one that failed does not tell."""
    while _timers:
        _timers.pop().cancel()


@cache
def _hook() -> None:
    """Have Triton tell when a compilation starts and ends; existing hooks still run."""
    from triton import knobs

    runtime = knobs.runtime
    before, after = runtime.jit_cache_hook, runtime.jit_post_compile_hook

    def started(*args: Any, **kwargs: Any) -> Any:
        if _announcers:
            timer = threading.Timer(NOTICED_AFTER, _announcers[-1], [LINE])
            timer.daemon = True
            timer.start()
            _timers.append(timer)
        return before(*args, **kwargs) if before else None

    def ended(*args: Any, **kwargs: Any) -> Any:
        _cancel()
        return after(*args, **kwargs) if after else None

    runtime.jit_cache_hook, runtime.jit_post_compile_hook = started, ended
