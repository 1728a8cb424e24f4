"""A token of each of several sequences in one pass through the model's own layers, for GPUs: weights are read
once for all of them, and Triton's kernels follow each sequence to its own keys, values and codes. Or a few
tokens of one sequence, which check a draft.

On a GPU a pass is a CUDA graph, one for each number of rows or tokens. Which sequences have the rows is told
in tensors on the device, so that one graph serves all sequences that attend alike. A pass of several tokens
may run beside a step of others, on a stream of its own (`aside.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from adamas_kernels.contract import LARGEST_STEP, SparseSettings
from torch import Tensor

from adamas_cli.cache.apart import CachesApart, OneOfMany, apart_obstacle
from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.full import FullLayer
from adamas_cli.cache.mode import Mode, Sparse
from adamas_cli.engine.drawn import together
from adamas_cli.engine.model import Model
from adamas_cli.engine.steps.captured import HOST_ROPE, left_as_they_were
from adamas_cli.engine.steps.describe import SPLIT

ROWS = (1, 2, 4, 8, LARGEST_STEP)  # of a pass; the last ones may be unused

log = logging.getLogger(__name__)


def rows_obstacle(model: Model, cache: KVCache, sparse: Sparse | None) -> str | None:
    """Why a cache's sequence cannot be one of several in a pass, in a few words; None if it can."""
    if model.ranks is not None:
        return SPLIT
    if model.dense is None:
        return "Triton does not run here"
    if sparse is not None and sparse.backend.name != "triton":
        return f"the {sparse.backend.name} backend computes sparse steps"
    if model.restarts:
        return "its layers take one token at a time"
    if any(scaling.kind == HOST_ROPE for scaling in model.rotation.scalings):
        return f"its positions are of kind {HOST_ROPE}"
    return apart_obstacle(cache)


class Likeness(NamedTuple):
    """What sequences of one pass have in common. sparse: how they choose tokens; each may have a backend of
    its own. coded: which layers have codes.
    """

    sparse: SparseSettings | None
    tallied: bool
    coded: tuple[bool, ...]
    reach: int
    shift: int

    @classmethod
    def of(cls, cache: KVCache, mode: Mode) -> Likeness:
        """Of a sequence that is about to take a step."""
        coded = (isinstance(layer, FullLayer) and layer.coded_for(mode) is not None for layer in cache.kept)
        sparse = None if mode.sparse is None else mode.sparse.settings
        return cls(sparse, mode.tally is not None, tuple(coded), cache.extent.reach, cache.extent.shift)


class Row(OneOfMany):
    """A sequence as one row of a step. token: the next one, int64 [1], or several [n]. room: tokens that its
    cache has room for.
    """

    def __init__(self, cache: KVCache, mode: Mode) -> None:
        super().__init__(cache, mode, cache.get_seq_length())
        self.likeness = Likeness.of(cache, mode)
        self.room = 0
        self.token: Tensor


@dataclass
class _Pass:
    """A pass of some number of rows, captured if there is a graph. tokens: int64 [rows]; logits [rows, V] and
    drawn, the greedy tokens, int64 [2, rows]: of the last one.
    """

    caches: CachesApart
    tokens: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    logits: Tensor | None = None
    drawn: Tensor | None = None


class StepsApart:
    """The steps of several sequences over one model, each in a cache of its own.

    captures: replay passes as CUDA graphs, until that turns out to be impossible. announce: called then.
    """

    def __init__(self, model: Model, *, captures: bool, announce: Callable[[str], None] = log.info) -> None:
        self._model, self._announce = model, announce
        self.captures = captures and model.device.type == "cuda"
        self._passes: dict[tuple[Likeness, int, int], _Pass] = {}
        self._several: torch.cuda.Event | None = None  # after the last pass of several tokens
        # Where passes of one token and of several are captured: products share their stream's scratch memory.
        self._streams: list[torch.cuda.Stream] = []

    @classmethod
    def of(cls, model: Model, *, captures: bool) -> StepsApart:
        """The one of a model, whose graphs serve all its caches."""
        if (cls, captures) not in model.shared:
            model.shared[cls, captures] = cls(model, captures=captures)
        found = model.shared[cls, captures]
        assert isinstance(found, cls)
        return found

    def step(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Append a token, int64 [1], to each sequence, at most LARGEST_STEP, which attend alike; or several,
        int64 [n], to one that attends fully. Returns the logits after each, [n, vocabulary], and the greedy
        tokens with their logits, int64 [2, n], see `drawn.together`.
        """
        new = len(rows[0].token)
        if new > 1 and self._several is not None:  # perhaps on another stream
            torch.cuda.current_stream(self._model.device).wait_event(self._several)
        for row in rows:
            if row.tokens + new > row.room:
                row.room = row.make_room(new)
        taken = self._pass(rows, new)
        taken.caches.seat(rows)
        count = len(rows) * new
        place = taken.tokens if count == len(taken.tokens) else taken.tokens[:count]
        _put_side_by_side([row.token for row in rows], place)
        if taken.graph is not None:
            taken.graph.replay()
        else:
            self._run(taken)
        taken.caches.count_step(rows)
        assert taken.logits is not None
        assert taken.drawn is not None
        logits, drawn = taken.logits, taken.drawn
        if count < len(logits):
            logits, drawn = logits[:count], drawn[:, :count]
        logits, drawn = logits.clone(), drawn.clone()
        if new > 1 and self._model.device.type == "cuda":
            self._several = torch.cuda.current_stream(self._model.device).record_event(self._several)
        return logits, drawn

    def prepare(self, row: Row) -> None:
        """Have the pass of a sequence alone compiled and captured."""
        self._pass([row], 1)

    def captured(self, row: Row, new: int) -> bool:
        """Whether this many tokens of a sequence need no new graph."""
        known = self._passes.get((row.likeness, 1, new))
        return known is not None and known.caches.room >= row.cache.capacity

    def _pass(self, rows: Sequence[Row], new: int) -> _Pass:
        """The pass for `new` tokens of each of these sequences, captured at its first use."""
        first = rows[0]
        size = next(size for size in ROWS if size >= len(rows))
        room = max(row.cache.capacity for row in rows)
        key = first.likeness, size, new
        known = self._passes.get(key)
        if known is None or known.caches.room < room:
            self._passes.pop(key, None)
            caches = CachesApart(first.cache, first.mode, size, 1 << (room - 1).bit_length(), new)
            known = _Pass(caches, torch.zeros(size * new, dtype=torch.int64, device=self._model.device))
            if self.captures:
                self._capture(known)
            self._passes[key] = known
        return known

    def _capture(self, one: _Pass) -> None:
        """Make a graph of a pass, whose rows are unused meanwhile; none if that fails."""
        device, several = self._model.device, one.caches.new > 1
        self._streams = self._streams or [torch.cuda.Stream(device), torch.cuda.Stream(device)]
        stream, graph = self._streams[several], torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # a dry run compiles kernels and creates buffers
            self._run(one)
        torch.cuda.current_stream(device).wait_stream(stream)
        # Graphs with one pool of memory never run at once.
        alike = (other for other in self._passes.values() if (other.caches.new > 1) == several)
        pool = next((other.graph.pool() for other in alike if other.graph), None)
        try:
            with (
                left_as_they_were(device),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                self._run(one)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.captures = False
            self._announce(f"no CUDA graph: {str(error).partition(chr(10))[0]}")
            return
        one.graph = graph

    def _run(self, one: _Pass) -> None:
        caches = one.caches
        positions = caches.extent.positions()
        if caches.new > 1:
            ahead = torch.arange(caches.new, device=positions.device)
            positions = (positions[..., None] + ahead).flatten(1)
        one.logits = self._model.forward(one.tokens, caches, caches.mode, every=True, positions=positions)
        weights, tokens = one.logits.max(-1)
        one.drawn = together(tokens, weights)


def _put_side_by_side(tokens: list[Tensor], place: Tensor) -> None:
    """Put tokens of several sequences, some of which may be on the host, into a place on the device."""
    if all(token.is_cuda == place.is_cuda for token in tokens):
        torch.cat(tokens, out=place)
    else:
        place.copy_(torch.cat([token.cpu() for token in tokens]))
