"""Reading: chunks of many tokens, with full attention or sparsely, shrunk when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from typing import Protocol

import torch
from adamas_kernels.contract import Backend
from adamas_kernels.reading import ReadSettings
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.mode import Mode, SparseReading
from adamas_cli.engine.eta import PrefillCost
from adamas_cli.engine.events import Prefill
from adamas_cli.engine.model import Model
from adamas_cli.errors import OutOfMemoryError
from adamas_cli.planning.choice import SPARSE_PAIR_COST

SMALLEST_CHUNK = 64
LEAST_SPARSELY = 512  # tokens; fewer gain nothing and are read densely


class Stored(Protocol):
    """A document that was read before, in whole or in part, or that is to be stored."""

    block: int  # tokens that are stored together
    alters: bool  # whether `keep` changes what is in the cache

    def restore(self, cache: KVCache) -> int:
        """Fill an empty cache with the document's first tokens; returns how many."""
        ...

    def keep(self, cache: KVCache, start: int, end: int) -> None:
        """Store tokens [start, end), which were just read."""
        ...

    def restore_codes(self, cache: KVCache) -> bool:
        """Restore the codes of the whole document; returns whether they were stored."""
        ...

    def keep_codes(self, cache: KVCache) -> None:
        """Store the codes of the whole document."""
        ...


class Reader:
    """Reads into one cache.

    chunk: tokens read at once. sparsely: what sparse reading skips; None to always read densely. logits:
    after the last token, [vocabulary].
    """

    logits: Tensor

    def __init__(self, model: Model, cache: KVCache, chunk: int, sparsely: ReadSettings | None) -> None:
        self.chunk = chunk
        self._model, self._cache = model, cache
        self._attention_share = model.attention_share
        self._sparse: SparseReading | None = None
        if sparsely is not None:
            computed = torch.zeros(2, dtype=torch.int64, device=model.device)
            self._sparse = SparseReading(sparsely, computed)

    def read_by(self, backend: Backend) -> None:
        """Have sparse reading computed by this backend from now on."""
        if self._sparse is not None:
            self._sparse = replace(self._sparse, backend=backend)

    @property
    def computed(self) -> float | None:
        """The share of blocks that sparse reading computed; None without any."""
        if self._sparse is None:
            return None
        computed, blocks = self._sparse.computed.tolist()
        return computed / blocks if blocks else None

    def read(
        self,
        tokens: Tensor,
        start: float,
        stored: Stored | None = None,
        *,
        encode: bool,
        sparsely: bool = False,
    ) -> Generator[Prefill]:
        """Read tokens, int64 [n], in chunks that do not cross blocks of `stored`. start: when the clock
        began. sparsely: read sparsely, if this reader may and there are enough tokens.

        encode: make the codes in the pass of the last chunk, layer by layer. All keys for fitting a codebook
        are known by then, and the host has time while the device computes.
        """
        base, total, done = self._cache.get_seq_length(), len(tokens), 0
        read = self._sparse if sparsely and total >= LEAST_SPARSELY else None
        cost = PrefillCost(self._attention_share * (1.0 if read is None else SPARSE_PAIR_COST))
        while True:
            remaining = cost.remaining(base + done, base + total)
            seconds = time.perf_counter() - start
            sparse = read is not None
            yield Prefill(base + done, base + total, base, seconds, remaining, self.chunk, sparse)
            if done == total:
                return
            step = time.perf_counter()
            size = self.chunk
            if stored is not None:
                size = min(size, stored.block - (base + done) % stored.block)
            size = self._read_chunk(tokens[done:], size, encode, read)
            cost.add(base + done, base + done + size, time.perf_counter() - step)
            done += size
            end = base + done
            if stored is not None and (done == total or end % stored.block == 0):
                stored.keep(self._cache, (end - 1) // stored.block * stored.block, end)

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()

    def _read_chunk(self, rest: Tensor, size: int, encode: bool, read: SparseReading | None) -> int:
        """Read the first of the remaining tokens, at most this many, fewer if memory runs out, and return how
        many; none if it raises. encode: see `read`; read: see `Mode`.
        """
        while True:
            tokens = rest[:size]
            mark = self._cache.mark()
            mode = Mode(encodes=encode and len(tokens) == len(rest), read=read)
            try:
                self.logits = self._model.forward(tokens, self._cache, mode)
                self.wait()
                return len(tokens)
            except BaseException as error:  # an interruption leaves some layers longer than others
                if not _is_out_of_memory(error):
                    self._cache.rewind(mark)
                    raise
            # Outside the handler, so that the traceback no longer holds the step's tensors.
            self._cache.rewind(mark)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            # Other ranks are in the middle of the pass, and cannot begin a smaller one.
            if len(tokens) <= SMALLEST_CHUNK or self._model.ranks is not None:
                cached = self._cache.get_seq_length()
                raise OutOfMemoryError(
                    f"out of memory on {self._model.device} with {cached:,} tokens in the cache. "
                    "Use a smaller model, `dtype` bfloat16, or fewer documents.",
                    n_cached_tokens=cached,
                )
            size = self.chunk = max(SMALLEST_CHUNK, len(tokens) // 2)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether this is one of torch's out-of-memory errors."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
