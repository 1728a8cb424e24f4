"""One document between engine and store: stored parts are restored, newly read ones are stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from adamas_cli.cache.cache import KVCache
from adamas_cli.cache.names import is_stream, split_name
from adamas_cli.cache.placement import Allocated, Placement, by_head
from adamas_cli.models.shape import shape_of_config
from adamas_cli.models.split import ranks_of
from adamas_cli.ranks.mirror import Arguments, Mirrored, created, mirrored
from adamas_cli.settings import CacheDType
from adamas_cli.store.chain import Chain
from adamas_cli.store.compression import compress, decompress
from adamas_cli.store.entries import Entry, prune, save, total_bytes
from adamas_cli.store.keeping import Keeper
from adamas_cli.store.keys import block_tokens, codes_key, first_link, model_facts
from adamas_cli.store.parts import SCALE, keeps_states
from adamas_cli.store.places import block_file, documents_directory
from adamas_cli.store.restoring import Restorer
from adamas_cli.store.settings import StoreSettings, default_limit, stored_format

if TYPE_CHECKING:
    from adamas_cli.models import LoadedModel


def _for_others(arguments: Arguments) -> Arguments:
    """What ranks other than the first are told: they note nothing, and place keys and values alike."""
    first = arguments["placement"].tokens_first
    return {**arguments, "note": _unnoted, "placement": Allocated(tokens_first=first)}


def _unnoted(line: str) -> None:
    """A note that nobody sees."""


class StoredDocument(Mirrored):
    """A document's tokens, int [n], for one model: the engine restores it and stores the blocks it reads.

    chunk: tokens read at once. placement: of the cache's keys and values. names: of the documents, for the
    user. note: called with one line about damage or a failed write; nothing is raised for these. turned,
    cached: see `model_facts`. sparsely: see `Chain`; None restores only densely read blocks.
    """

    @created(_for_others)
    def __init__(
        self,
        loaded: LoadedModel,
        ids: np.ndarray,
        chunk: int,
        placement: Placement,
        settings: StoreSettings,
        names: Sequence[str],
        note: Callable[[str], None],
        turned: int | None = None,
        sparsely: bytes | None = None,
        cached: CacheDType = "auto",
    ) -> None:
        config = loaded.model.config.get_text_config()
        shape, item = shape_of_config(config), loaded.dtype.itemsize
        self._each = shape.cache_bytes(1, item, cached)
        self.block = block_tokens(chunk, self._each)
        self._root, self._settings, self._note = documents_directory(), settings, note
        self._placement = placement
        kept = settings.kept(cached)
        self.alters = kept == "int8"
        ranks = ranks_of(loaded.model)
        part = None if ranks is None else ranks.name
        facts = model_facts(
            config,
            fingerprint=loaded.files.fingerprint,
            quantization=loaded.quantization,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=loaded.device.type,
            block=self.block,
            kept=kept,
            turned=turned,
            cached=cached,
            in_bytes=loaded.in_bytes,
            part=part,
        )
        self._chain = Chain(first_link(facts), ids, self.block, sparsely)
        found = self._chain.longest(lambda key: block_file(self._root, key).is_file())
        self._dense = len(self._chain) if sparsely is None else found.dense  # blocks; later ones are sparse
        self._keys = self._chain.keys(self._dense)
        self._tokens = len(ids)
        state = shape.kept_state_bytes(item)
        streams = self._each * len(ids)
        states = state + min(streams, state * len(self._keys))  # see `keeps_states`
        self._bytes = streams // (2 if self.alters else 1) + states
        now = time.time()
        dtype = stored_format(kept, cached, facts["dtype"])
        model = loaded.files.name if part is None else f"{loaded.files.name} ({part})"
        about = model, dtype, loaded.device.type, list(names), len(ids), self.block
        self._entry = Entry(*about, self._keys, now, dense=self._dense)
        self._restorer = Restorer(self._root, self._keys, self.block, loaded.device, loaded.dtype, placement)
        self._keeper: Keeper | None = None
        if not settings.read_only and self._keys:
            self._keeper = Keeper(self._root, self._begin, self._give_up)

    def restore(self, cache: KVCache) -> int:
        """Fill an empty cache with as much of the document as is stored; returns the token count."""
        found = self._restorer.restore(cache)
        if found.damaged is not None:
            self._drop(found.damaged, found.reason)
        if found.tokens and self._keeper is not None:
            with suppress(OSError):
                save(self._root, self._entry)
        if found.tokens > (dense := self._dense * self.block):
            cache.sparse_from = dense
        return found.tokens

    def keep(self, cache: KVCache, start: int, end: int) -> None:
        """Store a block, tokens [start, end), that the engine has just read.

        With compression, the cache then holds exactly what another process will restore.
        """
        dense = end <= cache.dense_tokens
        self._follow(len(self._chain) if dense else cache.dense_tokens // self.block)
        tensors = cache.stored(start, end)
        if end < self._tokens and not self._keeps_states(tensors, start // self.block):
            tensors = {name: tensor for name, tensor in tensors.items() if is_stream(name)}
        if self.alters:
            tensors = self._compressed(tensors)
        if self._keeper is not None:
            self._keeper.put(self._keys[start // self.block], start, end - start, tensors)

    def _follow(self, dense: int) -> None:
        """Use the keys for `dense` densely read blocks, the others sparse."""
        if dense != self._dense:
            self._dense, self._keys = dense, self._chain.keys(dense)
            self._entry = replace(self._entry, blocks=self._keys, dense=dense)

    def restore_codes(self, cache: KVCache) -> bool:
        """Restore the codes of the whole document, which is in the cache; returns whether it worked."""
        coding = cache.coding
        if coding is None or not self._keys:
            return False
        key = codes_key(self._keys[-1], coding)
        problem = self._restorer.restore_codes(cache, key, self._tokens)
        if problem:
            self._drop(key, problem)
        return problem is None

    def keep_codes(self, cache: KVCache) -> None:
        """Store the codes of the whole document, which were just made."""
        coding = cache.coding
        if coding is not None and self._keeper is not None:
            self._keeper.put(codes_key(self._keys[-1], coding), 0, self._tokens, cache.codes())

    @mirrored
    def finish(self) -> None:
        """Wait until everything is on disk."""
        if self._keeper is not None:
            self._keeper.finish()

    def _drop(self, key: str, problem: str) -> None:
        """Skip a damaged part, and remove it so that it can be written again."""
        self._note(f"a stored part of the document is not used: {problem}")
        if self._keeper is not None:
            with suppress(OSError):
                block_file(self._root, key).unlink()

    def _begin(self) -> None:
        """Make room for the document, and save its manifest before its blocks."""
        limit = self._settings.limit or default_limit(self._root, total_bytes(self._root))
        if self._bytes > limit:
            raise OSError(
                f"it takes {self._bytes / 1e6:,.0f} MB, and all may take {limit / 1e6:,.0f}: `doc_cache_size`"
            )
        save(self._root, self._entry)
        prune(self._root, limit - self._bytes, keep=self._entry.id)

    def _give_up(self, reason: str) -> None:
        self._note(f"the document is not kept for later questions: {reason}")

    def _keeps_states(self, tensors: Mapping[str, Tensor], index: int) -> bool:
        """Whether the states of the block at this index are stored with it."""
        streams = states = 0
        for name, tensor in tensors.items():
            if is_stream(name):
                streams += tensor.nbytes
            else:
                states += tensor.nbytes
        return keeps_states(index, states, streams or self.block * self._each)

    def _compressed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {}
        for name, tensor in tensors.items():
            parts[name] = tensor
            if is_stream(name):
                states = by_head(tensor, self._placement)
                small = compress(states, keys=split_name(name)[1] == "keys")
                states.copy_(decompress(small, states.dtype))
                parts[name], parts[name + SCALE] = small.numbers, small.scale
        return parts
