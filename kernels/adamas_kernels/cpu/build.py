"""Compile once, keep the result on disk, and announce compilations beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numba
from numba.core.event import Event, Listener, install_listener

from adamas_kernels import contract, reading, reference, weights

# Divide by zero like numpy, without an exception: callers of compiled code could not see one.
OPTIONS = {"error_model": "numpy"}
njit = partial(numba.njit, **OPTIONS)

NOTICE = "compiling CPU kernels, which are kept for the next time"


def source_stamp() -> int:
    """A number that changes with any source file of compiled code.

    Functions close over it to renew numba's cache, which only checks a function's own file.
    """
    files = [Path(str(module.__file__)) for module in (contract, reading, reference, weights)]
    files += sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()
    return int.from_bytes(digest[:7])


def stage(function: Callable[..., None], signature: Any) -> int:
    """Compile the function and return its address."""
    compiled = _kept(lambda cache: numba.cfunc(signature, cache=cache, **OPTIONS)(function))
    _stages.append(compiled)
    return compiled.address


_stages: list[Any] = []  # keeps functions alive, so that their addresses stay valid


def _kept(compile_with: Callable[[bool], Any]) -> Any:
    """Keep compiled code on disk, or only in this process if no folder is writable."""
    try:
        return compile_with(True)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return compile_with(False)


class _First(Listener):
    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce: Callable[[], None] | None = announce

    def on_start(self, event: Event) -> None:
        if self._announce is not None:
            announce, self._announce = self._announce, None
            announce()

    def on_end(self, event: Event) -> None:
        pass


@contextmanager
def announced(announce: Callable[[], None]) -> Iterator[None]:
    """Calls `announce` before the first compilation inside, if any. Loading from disk does not count."""
    with install_listener("numba:compile", _First(announce)):
        yield
