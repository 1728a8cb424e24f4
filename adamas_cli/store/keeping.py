"""From a cache to blocks on disk, in a thread alongside the prefill.

The thread reads keys and values directly from the cache, where they stay unchanged. So nothing is copied for
it, and prefill and decode never wait for a disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adamas_cli.files import appearing
from adamas_cli.store.blocks import BlockWriter, tensor_names
from adamas_cli.store.places import block_file
from adamas_cli.store.tensors import NAMES, lies_in_pieces, pieces


@dataclass(frozen=True)
class _Order:
    key: str
    start: int
    tokens: int
    tensors: Mapping[str, Tensor]
    ready: torch.cuda.Event | None


class Keeper:
    """Writes blocks of one document in order, until the disk accepts no more.

    begin: called in the thread before the first block, may raise OSError. fail: called once, with a clause
    saying why nothing more is written.
    """

    def __init__(self, root: Path, begin: Callable[[], None], fail: Callable[[str], None]) -> None:
        self._root, self._begin, self._fail = root, begin, fail
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._staging: Tensor | None = None

    def put(self, key: str, start: int, tokens: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a block soon. Its tensors must not change afterwards."""
        ready = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            ready = torch.cuda.Event()
            ready.record()
        if self._thread is None:
            # A daemon thread, so that interrupts and failures do not wait for a disk.
            self._thread = threading.Thread(target=self._write_all, name="keep", daemon=True)
            self._thread.start()
        self._orders.put(_Order(key, start, tokens, tensors, ready))

    def finish(self) -> None:
        """Wait until everything is written."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()
            self._thread = None

    def _write_all(self) -> None:
        try:
            self._begin()
            while (order := self._orders.get()) is not None:
                if not self._is_there(order):
                    self._write(order)
                del order
        except OSError as error:
            self._fail(error.strerror or str(error))
        except RuntimeError as error:  # torch's, such as no memory to copy a block to the host
            self._fail(str(error).partition("\n")[0])

    def _is_there(self, order: _Order) -> bool:
        """Whether a block already has all of this, or its path is taken by something that is not a file."""
        file = block_file(self._root, order.key)
        if not file.is_file():
            return file.exists()
        return set(order.tensors) <= tensor_names(file)

    def _write(self, order: _Order) -> None:
        shapes = {name: (NAMES[x.dtype], tuple(x.shape)) for name, x in order.tensors.items()}
        with appearing(block_file(self._root, order.key)) as stream:
            writer = BlockWriter(stream, order.key, order.start, order.tokens, shapes)
            for name, host in self._on_host(order):
                writer.write(name, pieces(host if lies_in_pieces(host) else host.contiguous()))
            writer.seal()

    def _on_host(self, order: _Order) -> Iterator[tuple[str, Tensor]]:
        """Each tensor in host memory, valid until the next one."""
        if order.ready is None:
            yield from ((name, tensor.cpu()) for name, tensor in order.tensors.items())
            return
        device = next(x.device for x in order.tensors.values() if x.is_cuda)
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            order.ready.synchronize()
            largest = max(x.nbytes for x in order.tensors.values() if x.is_cuda)
            if self._staging is None or self._staging.numel() < largest:
                self._staging = torch.empty(largest, dtype=torch.uint8, pin_memory=True)
            for name, tensor in order.tensors.items():
                if not tensor.is_cuda:
                    yield name, tensor
                    continue
                size = tensor.numel() * tensor.element_size()
                host = self._staging[:size].view(tensor.dtype).view(tensor.shape)
                host.copy_(tensor, non_blocking=True)
                torch.cuda.current_stream(device).synchronize()
                yield name, host
