"""From blocks on disk into a cache: several threads read each tensor directly into its place.

Reading beats mapping here: it avoids page faults (10.7 against 6.9 GB/s from the page cache), and a failing
disk raises an error that can be handled, where a mapping would kill the process.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.names import is_stream
from adamas_cli.cache.placement import Placement, by_head
from adamas_cli.store.blocks import DamagedError, Header, read_header, read_tensor
from adamas_cli.store.compression import Compressed, decompress
from adamas_cli.store.parts import compressed_names, state_names
from adamas_cli.store.places import block_file
from adamas_cli.store.tensors import DTYPES, lies_in_pieces, pieces
from adamas_cli.store.transfer import Transfer

THREADS = {"cpu": 2, "cuda": 16}
TASK_BYTES = 8 << 20  # a thread reads before it takes the next task


@dataclass(frozen=True)
class Restored:
    """Tokens now in the cache; and, if a block was damaged, its key and the fault."""

    tokens: int
    damaged: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Block:
    descriptor: int
    header: Header

    @property
    def end(self) -> int:
        return self.header.start + self.header.tokens


class Restorer:
    """Restores the longest stored beginning of a document into an empty cache.

    keys: of the document's blocks of `block` tokens. placement: of the cache. On the way to a GPU, bytes pass
    through pinned memory of each thread.
    """

    def __init__(
        self,
        root: Path,
        keys: Sequence[str],
        block: int,
        device: torch.device,
        dtype: torch.dtype,
        placement: Placement,
    ) -> None:
        self._root, self._keys, self._block = root, keys, block
        self._device, self._dtype, self._placement = device, dtype, placement
        self._threads = min(THREADS.get(device.type, 2), os.cpu_count() or 1)
        self._transfers: list[Transfer] = []
        self._pinned = 0  # bytes of each
        self._free: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        if device.type == "cuda":
            with ExitStack() as files:
                first = next(self._open(files), None)
                if isinstance(first, _Block):
                    self._open_transfers([first])

    def restore(self, cache: KVCache) -> Restored:
        """Fill the cache, which must be empty, up to the first damaged block."""
        with ExitStack() as files:
            blocks: list[_Block] = []
            damage: tuple[int, str] | None = None  # the first unusable block, and why
            for found in self._open(files):
                if isinstance(found, str):
                    damage = len(blocks), found
                    break
                blocks.append(found)
            _end_with_states(blocks, len(blocks))
            if blocks:
                cache.open(self._shapes(blocks[0].header), blocks[-1].end, self._device)
                whole, reason = self._read_all(cache, blocks)
                if reason:
                    damage = whole, reason
                    _end_with_states(blocks, whole)
            while blocks:
                last = blocks[-1]
                try:
                    states = {name: self._state(last, name) for name in state_names(last.header.tensors)}
                except (DamagedError, OSError) as error:
                    damage = len(blocks) - 1, str(error)
                    _end_with_states(blocks, len(blocks) - 1)
                    continue
                cache.restored(last.end, states)
                return self._restored(last.end, damage)
            return self._restored(0, damage)

    def restore_codes(self, cache: KVCache, key: str, tokens: int) -> str | None:
        """Restore the codes of all tokens in the cache. Returns None on success, an empty text if none are
        stored, or the fault.
        """
        with ExitStack() as files:
            found = self._open_one(key, files)
            if not isinstance(found, _Block):
                return found
            if (found.header.key, found.header.tokens) != (key, tokens):
                return "it is another block"
            names = list(found.header.tensors)
            read = partial(self._whole, found)
            try:
                with self._threads_at_work([found]) as pool:
                    tensors = dict(zip(names, pool.map(read, names), strict=True))
            except (DamagedError, OSError) as error:
                return str(error)
            cache.restored_codes(tensors)
        return None

    def _restored(self, tokens: int, damage: tuple[int, str] | None) -> Restored:
        return Restored(tokens) if damage is None else Restored(tokens, self._keys[damage[0]], damage[1])

    def _open(self, files: ExitStack) -> Iterator[_Block | str]:
        """The existing blocks, in order; then the fault of the first unusable one, where it stops."""
        shapes: dict[str, tuple[torch.dtype, tuple[int, int]]] | None = None
        for index, key in enumerate(self._keys):
            found = self._open_one(key, files)
            if not isinstance(found, _Block):
                if found:
                    yield found
                return
            header = found.header
            shapes = shapes or self._shapes(header)
            if (header.key, header.start) != (key, index * self._block) or self._shapes(header) != shapes:
                yield "it is another block"
                return
            yield found

    def _open_one(self, key: str, files: ExitStack) -> _Block | str:
        """An open block, or its fault; an empty text if it does not exist."""
        try:
            descriptor = os.open(block_file(self._root, key), os.O_RDONLY | os.O_CLOEXEC)
            files.callback(os.close, descriptor)
            return _Block(descriptor, read_header(descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        except DamagedError as error:
            return str(error)

    def _shapes(self, header: Header) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
        """Number format and shape of each per-token tensor, without the token dimension."""
        compressed = compressed_names(header.tensors)
        shapes = {}
        for name, stored in header.tensors.items():
            if is_stream(name):
                small = name in compressed
                heads = stored.shape[1 if self._placement.tokens_first and not small else 0]
                shapes[name] = self._dtype if small else DTYPES[stored.dtype], (heads, stored.shape[2])
        return shapes

    def _read_all(self, cache: KVCache, blocks: Sequence[_Block]) -> tuple[int, str]:
        """Read all blocks into the cache; returns how many leading ones are intact, and the fault of the
        next.
        """
        with self._threads_at_work(blocks) as pool:
            tasks = [
                (index, pool.submit(self._read, cache, block, names))
                for index, block in enumerate(blocks)
                for names in _tasks(block.header)
            ]
            problems = [(index, str(error)) for index, task in tasks if (error := task.exception())]
            for _, task in tasks:
                unexpected = task.exception()
                if unexpected is not None and not isinstance(unexpected, DamagedError | OSError):
                    raise unexpected
        return min(problems, default=(len(blocks), ""))

    def _open_transfers(self, blocks: Sequence[_Block]) -> None:
        """Pin memory for the largest tensor of these blocks, if not yet pinned. That takes a while, so it
        happens before a question's clock starts when something is known to be stored.
        """
        sizes = (stored.bytes for block in blocks for stored in block.header.tensors.values())
        if self._device.type == "cuda" and (size := max(sizes)) > self._pinned:
            self._transfers = [Transfer(self._device, size) for _ in range(self._threads)]
            self._free = queue.SimpleQueue()
            for transfer in self._transfers:
                self._free.put(transfer)
            self._pinned = size

    @contextmanager
    def _threads_at_work(self, blocks: Sequence[_Block]) -> Iterator[ThreadPoolExecutor]:
        """Threads that move bytes into place; afterwards the bytes are visible to later work on the
        device.
        """
        self._open_transfers(blocks)
        for transfer in self._transfers:
            transfer.begin()
        try:
            with ThreadPoolExecutor(self._threads, "restore") as pool:
                yield pool
        finally:
            for transfer in self._transfers:
                transfer.end()

    @contextmanager
    def _transfer(self) -> Iterator[Transfer | None]:
        """One thread's transfer to the device; None for host memory."""
        if self._device.type != "cuda":
            yield None
            return
        transfer = self._free.get()
        try:
            with torch.cuda.device(self._device), transfer.scope():
                yield transfer
        finally:
            self._free.put(transfer)

    def _read(self, cache: KVCache, block: _Block, names: Sequence[str]) -> None:
        compressed = compressed_names(block.header.tensors)
        with self._transfer() as transfer:
            for name in names:
                place = cache.place(name, block.header.start, block.end)
                if name in compressed:
                    parts = [self._brought(transfer, block, part) for part in compressed[name]]
                    by_head(place, self._placement).copy_(decompress(Compressed(*parts), self._dtype))
                else:
                    self._bring(transfer, block, name, place)

    def _whole(self, block: _Block, name: str) -> Tensor:
        with self._transfer() as transfer:
            tensor = self._brought(transfer, block, name)
            if transfer is not None:  # made on the transfer's stream, used on another
                tensor.record_stream(torch.cuda.default_stream(self._device))
            return tensor

    def _brought(self, transfer: Transfer | None, block: _Block, name: str) -> Tensor:
        """One tensor of a block, in its own memory."""
        stored = block.header.tensors[name]
        place = torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device=self._device)
        self._bring(transfer, block, name, place)
        return place

    @staticmethod
    def _bring(transfer: Transfer | None, block: _Block, name: str, place: Tensor) -> None:
        """Fill a place, on the device or in host memory, with one tensor of a block."""
        stored = block.header.tensors[name]
        if transfer is None or not place.is_cuda:
            whole = place if lies_in_pieces(place) else torch.empty(place.shape, dtype=place.dtype)
            read_tensor(block.descriptor, stored, pieces(whole))
            if whole is not place:
                place.copy_(whole)
        else:
            transfer.carry(block.descriptor, stored, place)

    def _state(self, block: _Block, name: str) -> Tensor:
        stored = block.header.tensors[name]
        host = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        read_tensor(block.descriptor, stored, pieces(host))
        return host.to(self._device)


def _end_with_states(blocks: list[_Block], most: int) -> None:
    """Keep at most this many blocks, ending with one that has states."""
    del blocks[most:]
    while blocks and not state_names(blocks[-1].header.tensors):
        blocks.pop()


def _tasks(header: Header) -> Iterator[list[str]]:
    """The per-token tensors, in groups of about TASK_BYTES."""
    group: list[str] = []
    size = 0
    for name, stored in header.tensors.items():
        if is_stream(name):
            group.append(name)
            size += stored.bytes
            if size >= TASK_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group
