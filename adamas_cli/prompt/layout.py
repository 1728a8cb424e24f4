"""The prompt as token ids: documents laid out and counted in one streaming pass, then fitted to the
context.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.errors import OverContextError
from adamas_cli.prompt.linemap import LineMap, Location
from adamas_cli.prompt.template import Frame, closing, escaped, opening

if TYPE_CHECKING:
    from adamas_cli.documents import Document
    from adamas_cli.prompt.tokens import Tokenizer

NO_IDS = np.empty(0, np.int32)
LARGEST = 5  # maximum number of documents named in a refusal
KEPT_TOKENS = 1 << 24  # ids kept from each end of the documents: more than any model's context, 64 MiB


@dataclass(frozen=True)
class DocumentTokens:
    """How many prompt tokens one document takes, including its wrapper."""

    path: str
    tokens: int


class Layout:
    """The prompt up to and including the documents, read in one pass by `add`.

    Keeps at most `limit` token ids from each end, so that memory is bounded by the context, not by the input.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        frame: Frame,
        limit: int = KEPT_TOKENS,
        *,
        before: str | None = None,
        apart: bool = False,
    ) -> None:
        """before: the text before the first document, by default the frame's head. apart: the model reads
        each document as if it were the only one, at the same positions as the others.
        """
        self.apart = apart
        self.documents: list[DocumentTokens] = []
        self._tokenizer = tokenizer
        self._ends = _Ends(limit)
        self._lines = LineMap(tokenizer.token_bytes)
        self._gap = range(0)  # positions of the whole prompt that `fit` omitted
        self._note = 0  # tokens of the note in their place
        self._begins = tokenizer.begins(frame.head if before is None else before)  # for the next document
        self._fixed(tokenizer.encode_template(frame.head, begins=True))
        self.beginning = self.total  # tokens before the first document

    @property
    def total(self) -> int:
        """Tokens laid out so far, whether kept or not."""
        return self._ends.total

    @property
    def positions(self) -> int:
        """The position after the documents: that of the longest one where they are read apart."""
        if not self.apart:
            return self.total
        return self.beginning + max((document.tokens for document in self.documents), default=0)

    @property
    def dropped(self) -> int:
        """The number of tokens that `fit` omitted."""
        return len(self._gap)

    @property
    def dropped_line(self) -> str:
        """The note about them for the user."""
        return f"left out {self.dropped:,} of {self.total:,} tokens, from the documents' middle"

    def expect(self, documents: Sequence[Document]) -> None:
        """Announce the documents to be added, so that the tokenizer can choose its path."""
        self._tokenizer.expect(sum(document.characters for document in documents))

    def add(self, document: Document, advance: Callable[[int], None] = lambda _: None) -> None:
        """Lay out one document; calls `advance` with the number of tokens in each block."""
        before = self.total
        self._fixed(self._tokenizer.encode(opening(document), begins=self._begins))
        self._begins = self._begins and self.apart
        self._lines.begin(document.path)
        for ids in self._tokenizer.stream(escaped(self._text(document))):
            self._lines.add(ids)
            self._ends.add(ids)
            advance(len(ids))
        self._fixed(self._tokenizer.encode(closing()))
        self.documents.append(DocumentTokens(document.path, self.total - before))

    def fit(self, question: int, answer: int, context: int, truncate: bool = False) -> np.ndarray:
        """The ids that the model reads before the question, int32 [n]: all of them, if question and answer
        fit too.

        truncate: keep as much of the beginning and the end as fits, with a note about the omission between
        them.

        Raises OverContextError if they do not fit without `truncate`, or if nothing would remain.
        """
        room = context - question - answer
        if self.positions <= room and self.total <= max(room, self._ends.limit):
            return self._ends.first(self.total)
        if not truncate:
            advice = "Give less, add `on_overflow` truncate, or use"
            if self.apart:
                advice = "Divide it, read it with `on_overflow` map-reduce instead of `apart`, or use"
            raise self._over(question, answer, context, advice)
        note = self._tokenizer.encode(f"\n[{self.total - room:,} tokens left out]\n")
        kept = room - len(note)
        if kept < 2:
            advice = "Nothing of the document is left: lower `max_tokens`, or use"
            raise self._over(question, answer, context, advice)
        head, tail = kept - kept // 2, kept // 2
        self._gap = range(head, self.total - tail)
        self._note = len(note)
        return np.concatenate([self._ends.first(head), note, self._ends.last(tail)])

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each document's path, and what the model reads of it apart from the others, int32 [n]: the
        beginning of the prompt and the document.
        """
        ids = self._ends.first(self.total)
        end = self.beginning
        for document in self.documents:
            start, end = end, end + document.tokens
            yield document.path, np.concatenate([ids[: self.beginning], ids[start:end]])

    def keep_budget(self, question: int, budget: int) -> None:
        """Raises OverContextError if documents and question are more than `budget` tokens."""
        needed = self.total + question
        if needed > budget:
            raise OverContextError(
                f"document {self.total:,} + question {question:,} = {needed:,} tokens > `token_budget` "
                f"{budget:,}. Give less, or raise it.{self.largest_line()}",
                largest=self._largest(),
                n_document_tokens=self.total,
                n_question_tokens=question,
                n_prompt_tokens=needed,
                n_token_budget=budget,
            )

    def locate(self, index: int) -> Location | None:
        """Document, line and section of the token that `fit` returned at `index`; None outside documents."""
        if index >= self._gap.start and self._gap:
            if index < self._gap.start + self._note:
                return None
            index += len(self._gap) - self._note
        return self._lines.locate(index)

    def _text(self, document: Document) -> Iterator[str]:
        """The document's pieces; records where its sections begin."""
        line = 1
        for text, section in document.parts():
            if section is not None:
                self._lines.begin_section(line, section)
            line += text.count("\n")
            yield text

    def _fixed(self, ids: np.ndarray) -> None:
        """Add tokens that belong to no document."""
        self._lines.skip(len(ids))
        self._ends.add(ids)

    def _largest(self) -> list[dict[str, object]]:
        """The largest documents, if there are several."""
        if len(self.documents) < 2:
            return []
        ordered = sorted(self.documents, key=lambda document: (-document.tokens, document.path))
        return [{"path": document.path, "tokens": document.tokens} for document in ordered[:LARGEST]]

    def largest_line(self) -> str:
        """A line that names them, for the end of a message; empty if there is only one document."""
        named = [f"{entry['path']} {entry['tokens']:,}" for entry in self._largest()]
        return f"\nThe largest of {len(self.documents):,} documents: {', '.join(named)}" if named else ""

    def _over(self, question: int, answer: int, context: int, advice: str) -> OverContextError:
        longest = "longest " if self.apart else ""
        needed = f"{longest}document {self.positions:,} + question {question:,} + answer {answer:,} tokens"
        return OverContextError(
            f"{needed} > context {context:,}. {advice} a model with a longer context.{self.largest_line()}",
            largest=self._largest(),
            n_document_tokens=self.positions,
            n_question_tokens=question,
            n_prompt_tokens=self.positions + question,
            n_answer_tokens=answer,
            n_ctx=context,
        )


def question_ids(tokenizer: Tokenizer, frame: Frame, question: str) -> np.ndarray:
    """The prompt from after the documents to the start of the answer, int32 [n]."""
    parts: Sequence[np.ndarray] = (
        tokenizer.encode_template(frame.middle),
        tokenizer.encode(question, begins=tokenizer.begins(frame.middle)),
        tokenizer.encode_template(frame.tail),
    )
    return np.concatenate(parts)


class _Ends:
    """Keeps the first and the last `limit` ids of a stream of any length."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._head: list[np.ndarray] = []
        self._tail: deque[np.ndarray] = deque()
        self._tail_length = 0

    def add(self, ids: np.ndarray) -> None:
        room = max(0, self.limit - self.total)
        self.total += len(ids)
        if room:
            self._head.append(ids[:room])
        self._tail.append(ids)
        self._tail_length += len(ids)
        while self._tail_length - len(self._tail[0]) >= self.limit:
            self._tail_length -= len(self._tail.popleft())

    def first(self, count: int) -> np.ndarray:
        """The first `count` ids, `count` <= limit."""
        return np.concatenate([NO_IDS, *self._head])[:count]

    def last(self, count: int) -> np.ndarray:
        """The last `count` ids, `count` <= limit."""
        joined = np.concatenate([NO_IDS, *self._tail])
        return joined[len(joined) - count :]
