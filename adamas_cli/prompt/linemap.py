"""Maps a token of the prompt to its document, line and section."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Location(NamedTuple):
    """Where a token was read."""

    path: str
    line: int  # 1 for the first line
    section: str | None = None  # such as "page 12", in documents that have sections


class DocumentSpan:
    """The tokens of one document: its `path`, its `start` in the prompt, and the number of `tokens`."""

    def __init__(self, path: str, start: int, line: int) -> None:
        self.path = path
        self.start = start
        self.tokens = 0
        self._line = line
        self._section_lines: list[int] = []
        self._sections: list[str] = []
        self._line_ends: list[
            np.ndarray
        ] = []  # per block: index in the document of the token of each line end

    def _add(self, newlines: np.ndarray) -> None:
        """Append tokens that hold this many line ends each."""
        holders = np.flatnonzero(newlines)
        self._line_ends.append((np.repeat(holders, newlines[holders]) + self.tokens).astype(np.int32))
        self.tokens += len(newlines)

    def _begin_section(self, line: int, label: str) -> None:
        self._section_lines.append(line)
        self._sections.append(label)

    def _section_at(self, line: int) -> str | None:
        """The section that contains `line`: the last one that begins on it or before it."""
        after = bisect_right(self._section_lines, line)
        return self._sections[after - 1] if after else None

    def _line_at(self, offset: int) -> int:
        """The line in which the document's token at `offset` begins."""
        if len(self._line_ends) > 1:
            self._line_ends = [np.concatenate(self._line_ends)]
        return self._line + sum(int(np.searchsorted(ends, offset)) for ends in self._line_ends)


class LineMap:
    """Built while a prompt is laid out, in its order; keeps four bytes per line, nothing per token.

    A token belongs to the line in which it begins; lines end with `\\n`.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        """`token_bytes` returns the bytes of a token id, as `Tokenizer.token_bytes` does."""
        self.documents: list[DocumentSpan] = []
        self.tokens = 0  # of the prompt, so far
        self._in_document = False
        self._token_bytes = token_bytes
        self._newlines = np.empty(0, dtype=np.int16)  # line ends in each token id; -1 if not yet counted

    def begin(self, path: str, line: int = 1) -> None:
        """Begin a document: the next tokens are the text of `path`, from line `line` on."""
        self.documents.append(DocumentSpan(path, self.tokens, line))
        self._in_document = True

    def begin_section(self, line: int, label: str) -> None:
        """Begin a section of the current document at its line `line`; call it in line order. The section's
        tokens may be added before or after.
        """
        self.documents[-1]._begin_section(line, label)

    def add(self, ids: np.ndarray) -> None:
        """Append token ids (integers [n]) of the current document; ValueError if it has ended."""
        if not self._in_document:
            raise ValueError("tokens of a document were added before it began")
        self.documents[-1]._add(self._count_newlines(ids))
        self.tokens += len(ids)

    def skip(self, count: int) -> None:
        """Append `count` tokens that belong to no document; this ends the document before them."""
        self._in_document = False
        self.tokens += count

    def locate(self, token_index: int) -> Location | None:
        """Where the prompt's token at `token_index` was read; None if it belongs to no document.

        Raises IndexError outside the prompt.
        """
        if not 0 <= token_index < self.tokens:
            raise IndexError(f"token {token_index} of a prompt of {self.tokens}")
        after = bisect_right(self.documents, token_index, key=lambda document: document.start)
        if after == 0:
            return None
        document = self.documents[after - 1]
        offset = token_index - document.start
        if offset >= document.tokens:
            return None
        line = document._line_at(offset)
        return Location(document.path, line, document._section_at(line))

    def _count_newlines(self, ids: np.ndarray) -> np.ndarray:
        """The number of line ends in each of `ids` (int16 [n])."""
        if len(ids) == 0:
            return np.empty(0, dtype=np.int16)
        highest = int(ids.max())
        if highest >= len(self._newlines):
            grown = np.full(highest + 1, -1, dtype=np.int16)
            grown[: len(self._newlines)] = self._newlines
            self._newlines = grown
        for token_id in np.unique(ids[self._newlines[ids] < 0]).tolist():
            self._newlines[token_id] = self._token_bytes(token_id).count(b"\n")
        return self._newlines[ids]
