"""Surveys all bytes of a text before it is read: their encoding, and what a model need not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import eq

from adamas_cli.documents.decoding import CONTROLS, find_encoding
from adamas_cli.documents.encodings import Encoding
from adamas_cli.documents.remark import Remark, summed
from adamas_cli.documents.simplifying import LEAST_REPEATS

_WIDE = ("utf-16", "utf-32")
_REPEATS = b"\1" * (LEAST_REPEATS - 1)
_DATA = re.compile(rb"data:[a-z]+/")


@dataclass(frozen=True)
class Reading:
    """How the bytes of a text are read.

    Terminal `codes` and `controls`, which do not belong in text, are counted here and omitted later.
    `clutter`: there is something to simplify. `controls` are only NUL bytes unless a binary file is `forced`.
    """

    encoding: Encoding
    clutter: bool = False
    codes: int = 0
    controls: int = 0
    forced: bool = False

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What is omitted from the text."""
        kind = "control characters" if self.forced else "NUL bytes"
        return tuple(summed([Remark("terminal codes", self.codes), Remark(kind, self.controls)]))


def survey(
    blocks: Iterable[bytes], named: str | None = None, *, forced: bool = False, keep_utf8: bool = False
) -> Reading:
    """How to read `blocks`, after examining all of them. named: the codec that the user names, only for bytes
    that are not UTF-8 if `keep_utf8`; forced: the user reads them whatever they are.
    """
    counts = _Counts(forced)
    stream = counts.watched(blocks)
    encoding = find_encoding(stream, named, keep_utf8=keep_utf8)
    for _ in stream:
        pass
    if encoding.codec.startswith(_WIDE):  # bytes are not characters here: the text is examined when read
        return Reading(encoding, clutter=True, codes=counts.wide_escapes, forced=forced)
    # In ISO-2022, escape codes are the encoding.
    codes = 0 if encoding.codec.startswith("iso2022") else counts.escapes
    return Reading(encoding, bool(codes) or counts.clutter, codes, counts.controls, forced)


class _Counts:
    """Counts what is found in the blocks that pass through."""

    def __init__(self, forced: bool) -> None:
        self.escapes = self.wide_escapes = self.controls = 0
        self.clutter = False
        self._forced = forced

    def watched(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        last = b""
        for block in blocks:
            if b"\x1b" in block:  # searching for one byte is almost free
                self.escapes += block.count(b"\x1b")
                self.wide_escapes += max(block.count(b"\x1b\0"), block.count(b"\0\x1b"))
            if self._forced:
                self.controls += len(block) - len(block.translate(None, CONTROLS))
            elif b"\0" in block:
                self.controls += block.count(b"\0")
            if not self.clutter:
                self.clutter = _is_cluttered(last + block if last == b"\r" else block)
            last = block[-1:]
            yield block


def _is_cluttered(block: bytes) -> bool:
    if b"\b" in block or (b"data:" in block and _DATA.search(block)):
        return True
    if b"\r" in block and block.count(b"\r") - block.count(b"\r\n") > block.endswith(b"\r"):
        return True
    lines = block.split(b"\n")
    same = bytes(map(eq, lines, lines[1:]))  # 1 for each line that the next one repeats
    start = same.find(_REPEATS)
    while start >= 0 and not lines[start].strip():
        start = same.find(_REPEATS, same.find(0, start))
    return start >= 0
