"""The way of keys and values in host memory to a GPU and back, where many tokens attend to all of them.

Kernels for chunks and for full attention read all keys and values, several times. So these come to the GPU
layer by layer, into one of two slots: while a layer is computed, those of the next one arrive, and new ones
leave for the host. Both slots together take the keys and values of two layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from adamas_cli.cache.growing import TokenBuffer
from adamas_cli.cache.hosted import HostBuffer, HostRows

Rows = tuple[Tensor, ...]


class Staged(Protocol):
    """A layer with keys and values in host memory. length: of tokens that are there."""

    length: int

    @property
    def buffers(self) -> Mapping[str, TokenBuffer]:
        """By the names of `STREAMS`."""
        ...


class Lane:
    """Copies that run beside the computation, one after another; on a CPU they are complete at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def now(self) -> torch.cuda.Event | None:
        """What is in the current stream so far."""
        return None if self._stream is None else torch.cuda.current_stream(self._device).record_event()

    def wait(self, event: torch.cuda.Event | None) -> None:
        """The current stream continues after the event."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def copy(
        self, pairs: Sequence[tuple[Tensor, Tensor]], after: Sequence[torch.cuda.Event | None]
    ) -> torch.cuda.Event | None:
        """Copy from the second tensor of each pair into the first, after some events; returns when."""
        with self._beside():
            for event in after:
                self.wait(event)
            for into, source in pairs:
                into.copy_(source, non_blocking=True)
                for x in (into, source):
                    if x.is_cuda and self._stream is not None:
                        x.record_stream(self._stream)
            return self.now()

    def _beside(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


@dataclass
class Slot:
    """Memory for the keys and values of one layer.

    whole: its rows as bytes, [S, B, K, W]; rows: their parts. holds: the layer whose first `tokens` rows are
    in it or arrive there, until it is opened. arrived, left: the last copies into it and out of it.
    """

    memory: Tensor
    whole: Tensor
    holds: ref[Staged] | None = None
    tokens: int = 0
    arrived: torch.cuda.Event | None = None
    left: torch.cuda.Event | None = None
    rows: Rows = field(default_factory=tuple)

    def lay_out(self, rows: HostRows) -> None:
        """Make room for rows like these."""
        shape = rows.whole_seen.shape
        if shape.numel() > len(self.memory):
            self.memory = self.memory.new_empty(shape.numel())
        self.whole = self.memory[: shape.numel()].view(shape)
        self.rows = tuple(rows.parts(self.whole))


class Staging:
    """Two slots on a device, shared by all layers of a cache and its forks, which open them in turn."""

    def __init__(self, device: torch.device) -> None:
        self._arriving, self._leaving = Lane(device), Lane(device)
        empty = torch.empty(0, dtype=torch.uint8, device=device)
        self._slots = [Slot(empty, empty) for _ in range(2)]
        self._following: WeakKeyDictionary[Staged, ref[Staged]] = WeakKeyDictionary()
        self._last: ref[Staged] | None = None  # the layer opened last

    def forget(self) -> None:
        """Whatever is on its way may be out of date: a new pass begins."""
        self._last = None
        for slot in self._slots:
            slot.holds = None

    def open(self, layer: Staged) -> Rows:
        """The layer's rows of keys and values on the device, [B, K, S, R], with its first `length` tokens in
        place; the others may be written. Valid until the next but one layer is opened.
        """
        slot = next((slot for slot in self._slots if self._has(slot, layer)), None)
        if slot is None:
            slot = self._slots[0]
            self._bring(slot, layer)
        self._arriving.wait(slot.arrived)
        slot.holds = None
        last = None if self._last is None else self._last()
        self._last = ref(layer)
        if last is not None and last is not layer:
            self._following[last] = ref(layer)
        self._slots = [other for other in self._slots if other is not slot] + [slot]
        following = self._following.get(layer)
        if following is not None and (later := following()) is not None and later is not layer:
            self._bring(self._slots[0], later)
        return slot.rows

    def close(self, layer: Staged, start: int) -> None:
        """Write the rows of tokens from `start` up to the layer's `length` to host memory. The layer must be
        the one opened last.
        """
        slot, tokens, rows = self._slots[1], slice(start, layer.length), _hosted(layer)
        pairs = [(rows.whole_host[tokens], slot.whole[tokens])]
        rows.written = slot.left = self._leaving.copy(pairs, [self._leaving.now()])

    def _has(self, slot: Slot, layer: Staged) -> bool:
        return slot.holds is not None and slot.holds() is layer and slot.tokens == layer.length

    def _bring(self, slot: Slot, layer: Staged) -> None:
        """Copy a layer's rows into a slot, once everything is done that the current stream has so far: it may
        use the slot, or write to the host.
        """
        rows, tokens = _hosted(layer), slice(0, layer.length)
        slot.lay_out(rows)
        pairs = [(slot.whole[tokens], rows.whole_host[tokens])]
        slot.arrived = self._arriving.copy(pairs, [slot.left, self._arriving.now()])
        slot.holds, slot.tokens = ref(layer), layer.length


def _hosted(layer: Staged) -> HostRows:
    buffer = next(iter(layer.buffers.values()))
    assert isinstance(buffer, HostBuffer)
    return buffer.rows
