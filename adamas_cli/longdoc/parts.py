"""Cuts a stream of documents of any size into parts that fill the context, at the best borders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from adamas_cli.documents import Document
from adamas_cli.documents import parts as documents
from adamas_cli.errors import OverContextError
from adamas_cli.longdoc.borders import Border, Source, Unit, units
from adamas_cli.prompt.template import closing, escaped, opening

if TYPE_CHECKING:
    from adamas_cli.prompt.tokens import Tokenizer

# A part is cut at the best border after this share of the room. More than half, so that no two neighbours
# fit together; not much more, so that most parts end at the end of a file, chapter or paragraph.
LEAST_SHARE = 5 / 8
# Maximum share of the room that a cut within a line leaves unused.
_UNIT_SHARE = 1 / 32


@dataclass(frozen=True)
class Passage:
    """A contiguous part of one document."""

    path: str
    first_line: int
    last_line: int
    section: str | None  # the heading above its first line
    whole: bool  # it is the whole document

    @property
    def label(self) -> str:
        """The path, and the lines unless it is the whole document: `book.txt:120-480`."""
        return self.path if self.whole else f"{self.path}:{self.first_line}-{self.last_line}"

    def as_json(self) -> dict[str, object]:
        """The passage as JSON."""
        lines = {"first_line": self.first_line, "last_line": self.last_line}
        return {"path": self.path, **lines, "section": self.section}


@dataclass(frozen=True)
class _Held:
    """Text in memory, as a document's content."""

    text: str

    @property
    def characters(self) -> int:
        return len(self.text)

    def parts(self) -> Iterator[documents.Part]:
        yield documents.Part(self.text)


@dataclass(frozen=True)
class Excerpt(Document):
    """A document of text in memory."""

    text: str = ""

    @classmethod
    def of(cls, label: str, text: str) -> Excerpt:
        """The text, under this name."""
        return cls(path=label, size=len(text), content=_Held(text), text=text)


@dataclass(frozen=True)
class Part:
    """Passages that are read together."""

    passages: tuple[Passage, ...]
    texts: tuple[str, ...]  # of the passages
    tokens: int  # in the prompt, with the wrapper of each passage

    def excerpts(self) -> list[Excerpt]:
        """The documents that make up the prompt."""
        pairs = zip(self.passages, self.texts, strict=True)
        return [Excerpt.of(passage.label, text) for passage, text in pairs]


class Measure:
    """Counts the tokens of a prompt's documents exactly."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, text: str) -> int:
        """Tokens of a text without its wrapper."""
        return len(self._tokenizer.encode("".join(escaped([text]))))

    def wrapper(self, label: str) -> int:
        """Tokens before and after the text of a document of this name."""
        before = self._tokenizer.encode(opening(Excerpt.of(label, "")), begins=True)
        return len(before) + len(self._tokenizer.encode(closing()))

    def excerpt(self, label: str, text: str) -> int:
        """Tokens of a document in the prompt."""
        return self.wrapper(label) + self.text(text)


def cut(
    sources: Iterable[Source],
    measure: Measure,
    room: int,
    folder: Callable[[str], str] = lambda _: "",
) -> Iterator[Part]:
    """Documents in parts of at most `room` tokens; holds at most one part in memory.

    Each part but the last is so long that its neighbours do not fit into it, and ends at the best border
    that allows this. folder: see `units`. Raises OverContextError if `room` is too small for any text.
    """
    pending: list[Unit] = []
    costs: list[int] = []  # of each pending unit alone, including its own wrapper if it needs one
    estimate = 0
    for unit in units(sources, max(1, int(room * _UNIT_SHARE)), folder):
        pending.append(unit)
        costs.append(_cost(pending, measure))
        estimate += costs[-1]
        while estimate > room:
            # Units take more tokens one by one than together, so the part is nearly full here.
            estimate = _part(pending, None, measure).tokens
            if estimate > room:
                yield _cut_off(pending, costs, measure, room)
                estimate = sum(costs)
    while pending:
        part = _part(pending, None, measure)
        if part.tokens <= room:
            pending.clear()
        else:
            part = _cut_off(pending, costs, measure, room)
        yield part


def _cost(pending: Sequence[Unit], measure: Measure) -> int:
    """Tokens that the last unit adds."""
    unit = pending[-1]
    cost = measure.text(unit.text)
    if len(pending) == 1 or pending[-2].document != unit.document:
        cost += measure.wrapper(f"{unit.path}:{unit.line}-{unit.line}")
    return cost


def _cut_off(pending: list[Unit], costs: list[int], measure: Measure, room: int) -> Part:
    """Take a part from the front of `pending`, which does not fit as a whole."""
    filled = list(accumulate(costs))

    def preference(k: int) -> tuple[int, int, int]:
        """Order of cuts: for long enough parts the best border, then the length; otherwise the length."""
        full = filled[k - 1] >= LEAST_SHARE * room
        return full, int(pending[k].border) if full else 0, k

    cuts = sorted(range(1, len(pending)), key=preference, reverse=True)
    too_long = len(pending)
    for k in cuts:
        if k >= too_long:
            continue
        part = _part(pending[:k], pending[k], measure)
        if part.tokens <= room:
            del pending[:k], costs[:k]
            costs[0] = _cost(pending[:1], measure)
            return part
        too_long = k
    label = pending[0].path
    raise OverContextError(
        f"{label}: {room:,} tokens beside the question and the answer are too few for a part of it. "
        "Raise `ctx_size` or lower `max_tokens`.",
        n_ctx=room,
    )


def _part(taken: Sequence[Unit], following: Unit | None, measure: Measure) -> Part:
    """The units as a part; `following` is the one after them."""
    passages, texts, tokens = [], [], 0
    for document, group in groupby(taken, key=lambda unit: unit.document):
        own = list(group)
        begins = own[0].border >= Border.FILE
        ends = following is None or following.document != document or own[-1] is not taken[-1]
        passage = Passage(own[0].path, own[0].line, own[-1].line, own[0].section, begins and ends)
        text = "".join(unit.text for unit in own)
        tokens += measure.excerpt(passage.label, text)
        passages.append(passage)
        texts.append(text)
    return Part(tuple(passages), tuple(texts), tokens)
