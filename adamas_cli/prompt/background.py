"""Work that runs ahead of its consumer in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.05  # how long a full queue keeps the thread from seeing that its consumer has gone
_GRACE_SECONDS = 0.5  # a thread that waits for input longer than this is left behind; it is a daemon


def run_ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, computed in a thread that is at most `depth` items ahead.

    The thread starts with the first item asked for. What `items` raises is raised here, after the items
    before it. Closing this generator (or Ctrl-C while it waits) stops the thread once the item that it is
    computing is done.
    """
    ready: queue.Queue[tuple[Item] | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    failure: list[BaseException] = []

    def put(entry: tuple[Item] | None) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put((item,))
                if stop.is_set():
                    break
        except BaseException as error:  # whatever it is, it belongs to the consumer
            failure.append(error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
            put(None)

    thread = threading.Thread(target=work, name="run-ahead", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            yield entry[0]
        if failure:
            raise failure[0]
    finally:
        stop.set()
        thread.join(_GRACE_SECONDS)
