"""Layers of a shape that no local model has, built from recorded heads.

A KV head is taken from the recordings whole, with its own keys, values and queries; only the combination of
heads into layers is invented. Beyond what the model can read, a head's context is assembled from its
recordings of several documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from adamas_kernels.contract import Backend, SparseSettings
from torch import Tensor

from adamas_cli.cache.placement import placement_on
from adamas_cli.errors import UsageError
from adamas_cli.lab.bench.caches import coded_cache
from adamas_cli.lab.bench.kernels import Shape
from adamas_cli.lab.bench.traces import Trace, with_one_length

# A document's first tokens attract much attention, unlike tokens in the middle of a text.
FIRST_TOKENS = 16


def documents_needed(context: int, read: int) -> int:
    """The number of documents, of `read` tokens each, that make up a context."""
    return 1 if context <= read else 1 + -(-(context - read) // (read - FIRST_TOKENS))


class Composer:
    """Builds layers of one shape from recordings of one model.

    documents: for each document, all with the same number of tokens, the traces of the model's layers.

    The KV heads of the built layers, counted through all layers, cycle through those of all recorded layers;
    each further cycle uses other queries of their groups. The queries and newest tokens of a head are from
    one document, and the documents rotate too. Before them come as many tokens of the other documents as the
    context needs, by the same recorded head; every document but the first loses its FIRST_TOKENS. Positions
    restart in each document, as the model saw them.
    """

    def __init__(self, documents: Sequence[Sequence[Trace]], shape: Shape) -> None:
        self._documents = documents
        self._shape = shape
        self._recorded = documents[0][0].shape
        self._read = documents[0][0].context
        self._group = shape.heads // shape.kv_heads
        self._whole_group = self._recorded.heads // self._recorded.kv_heads
        if shape.dim != self._recorded.dim:
            raise UsageError(f"`heads` {shape}: the model's heads have {self._recorded.dim} coordinates")
        if self._group > self._whole_group:
            raise UsageError(
                f"`heads` {shape}: {self._group} queries to a KV head, and the model has {self._whole_group}"
            )

    def about(self, context: int, layers: int) -> str:
        """How the layers are built, in one line."""
        used, there = layers * self._shape.kv_heads, len(self._sources)
        rounds = -(-used // there)
        needed = documents_needed(context, self._read)
        parts = [
            f"{self._shape} at {context:,}: {layers} layers of {self._shape.kv_heads} KV heads each, taken "
            f"in turn from {there} recorded ones ({len(self._documents[0])} layers of {self._recorded})",
            f"{self._group} of the {self._whole_group} queries of each",
            f"{len(self._documents)} documents of {self._read:,} tokens",
        ]
        if rounds > 1:
            parts.append(f"each KV head used up to {rounds} times, with other queries")
        if needed > 1:
            parts.append(
                f"each context is {needed} of them, one after another, all but the first without their first "
                f"{FIRST_TOKENS} tokens, and positions begin anew in each"
            )
        return "; ".join(parts)

    def layers(self, count: int, context: int, backend: Backend, settings: SparseSettings) -> list[Trace]:
        """Layers with a context of this many tokens; see `documents_needed` for the documents this takes."""
        assert documents_needed(context, self._read) <= len(self._documents)
        return with_one_length([self._layer(number, context, backend, settings) for number in range(count)])

    @property
    def _sources(self) -> list[tuple[int, int]]:
        """Indices of layers and their KV heads, ordered so that neighbours are from different layers."""
        layers = range(len(self._documents[0]))
        return [(layer, head) for head in range(self._recorded.kv_heads) for layer in layers]

    def _layer(self, number: int, context: int, backend: Backend, settings: SparseSettings) -> Trace:
        places = range(number * self._shape.kv_heads, (number + 1) * self._shape.kv_heads)
        steps = [self._steps(place) for place in places]
        queries, keys, values = (torch.cat(parts, 2) for parts in zip(*steps, strict=True))
        room = context + len(queries)
        placement = placement_on(keys.device)
        buffers = [placement.buffer(one[0], room).tensor for one in (keys, values)]
        for head, place in enumerate(places):
            self._fill(buffers[0][0, head], buffers[1][0, head], place, context)
        seen = queries[:, 0].transpose(0, 2)  # [1, H, T, D]
        cache = coded_cache(buffers[0], buffers[1], context, seen, backend, settings)
        like = self._documents[0][0]
        return Trace(number, cache, context, queries, keys, values, like.scaling, like.softmax)

    def _source(self, place: int) -> tuple[int, int, int, int]:
        """The source of the KV head at a position among all built heads: document, layer, KV head, and how
        often that head was used before.
        """
        before, index = divmod(place, len(self._sources))
        return (place + before) % len(self._documents), *self._sources[index], before

    def _steps(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, 1, group, 1, D], keys and values [T, 1, 1, 1, D] of a KV head's steps."""
        document, layer, head, before = self._source(place)
        trace = self._documents[document][layer]
        whole = self._whole_group
        own = [head * whole + (before * self._group + query) % whole for query in range(self._group)]
        only = slice(head, head + 1)
        return trace.queries[:, :, own], trace.keys[:, :, only], trace.values[:, :, only]

    def _fill(self, keys: Tensor, values: Tensor, place: int, context: int) -> None:
        """Write a KV head's context to keys and values [C, D], from its end, where its own document is."""
        document, layer, head, _ = self._source(place)
        end = context
        for back in range(documents_needed(context, self._read)):
            cache = self._documents[document - back][layer].cache
            first = end <= self._read  # first in the context: from its beginning, as much as fits
            part = slice(0, end) if first else slice(FIRST_TOKENS, self._read)
            start = end - (part.stop - part.start)
            keys[start:end] = cache.keys[0, head, part]
            values[start:end] = cache.values[0, head, part]
            end = start
