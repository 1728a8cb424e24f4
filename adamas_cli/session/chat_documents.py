"""The documents of a conversation, kept separate so that each can be dropped."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.prompt.layout import Layout

if TYPE_CHECKING:
    from adamas_cli.prompt.linemap import Location


@dataclass(frozen=True, eq=False)
class ChatDocument:
    """One document as the model reads it, or several that were truncated together and are inseparable."""

    path: str
    ids: np.ndarray  # int32 [n], including its wrapper
    layout: Layout
    start: int  # position of its ids in the layout

    def locate(self, index: int) -> Location | None:
        """The document and line of its token at `index`."""
        return self.layout.locate(self.start + index)

    def is_named(self, name: str) -> bool:
        """Whether `name` is its path or a folder that holds it."""
        path = os.path.normpath(name)
        return self.path in (name, path) or self.path.startswith(path + os.sep)


def shelved(layout: Layout, ids: np.ndarray) -> tuple[ChatDocument, ...]:
    """The documents of a layout without a head, for which `fit` returned these ids, int [n]."""
    if layout.dropped:
        first, *others = layout.documents
        name = first.path if not others else f"{first.path} and {len(others):,} more"
        return (ChatDocument(name, ids, layout, 0),)
    documents, start = [], 0
    for document in layout.documents:
        end = start + document.tokens
        documents.append(ChatDocument(document.path, ids[start:end], layout, start))
        start = end
    return tuple(documents)


def locate(documents: Sequence[tuple[int, ChatDocument]], index: int) -> Location | None:
    """Document and line of a prompt's token at `index`; documents: the prompt's, with their positions."""
    before = bisect_right(documents, index, key=itemgetter(0))
    if not before:
        return None
    start, document = documents[before - 1]
    return document.locate(index - start) if index < start + len(document.ids) else None


def tokens(documents: Sequence[ChatDocument]) -> int:
    """The total number of tokens in the documents."""
    return sum(len(document.ids) for document in documents)
