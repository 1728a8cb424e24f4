"""Compile once, keep the result on disk, and announce compilations beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock
from numba.core.caching import FunctionCache
from numba.core.event import Event, Listener, install_listener
from numba.core.serialize import dumps

from adamas_kernels import contract, reading, reference, weights

# Divide by zero like numpy, without an exception: callers of compiled code could not see one.
OPTIONS = {"error_model": "numpy"}
njit = partial(numba.njit, **OPTIONS)

NOTICE = "compiling CPU kernels, which are kept for the next time"


def source_stamp() -> int:
    """A number that changes with any source file of compiled code.

    Functions close over it to renew numba's cache, which only checks a function's own file.
    """
    return _STAMP


def _stamp() -> int:
    files = [Path(str(module.__file__)) for module in (contract, reading, reference, weights)]
    files += sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()
    return int.from_bytes(digest[:7])


# Of the files as they are when this process imports them: a program that runs while they are replaced must
# not keep the code of the old ones under the name of the new ones.
_STAMP = _stamp()


def distinct(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a name that tells what it closes over.

    numba names compiled code after a function's name and a number that it counts in each process. So code of
    two closures of one function, compiled by two processes and kept, could have one name, and a third process
    that loads both would run the first for the second as well.
    """
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    content = dumps([content for content in cells if content != _STAMP])
    function.__qualname__ += "_" + hashlib.sha256(content).hexdigest()[:16]
    return function


def stage(function: Callable[..., Any], signature: Any) -> int:
    """Compile the function, or load it from disk, and return its address."""
    with _kept(distinct(function)) as cache:
        compiled = numba.cfunc(signature, cache=cache, **OPTIONS)(function)
    _stages.append(compiled)
    return compiled.address


_stages: list[Any] = []  # keeps functions alive, so that their addresses stay valid


@contextmanager
def _kept(function: Callable[..., Any]) -> Iterator[bool]:
    """A scope that compiles a function: whether its code may be kept on disk, in a folder that no other
    process then uses. Two that keep code at the same time would take the same name for it in numba's index,
    and one of them would later run the other's code.
    """
    try:
        folder = Path(FunctionCache(function).cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        locked = FileLock(folder / "adamas.lock").acquire()
    except (RuntimeError, OSError, NotImplementedError):  # no folder is writable, or it cannot be locked
        yield False
        return
    with locked:
        yield True


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
