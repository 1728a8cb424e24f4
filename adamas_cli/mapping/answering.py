"""One model that answers the questions about one document after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain

from adamas_cli.documents import Document
from adamas_cli.documents.apart import Source, opened
from adamas_cli.errors import as_user_error
from adamas_cli.longdoc.job import asking
from adamas_cli.longdoc.work import Work
from adamas_cli.mapping.job import Answered, Asked, Job
from adamas_cli.mapping.rows import Row, failed, row_of
from adamas_cli.progress import Progress, Silent
from adamas_cli.prompt.layout import Layout
from adamas_cli.prompt.template import DEFAULT_TEMPLATE
from adamas_cli.session.answer import Answer, listen
from adamas_cli.session.documents import OpenDocuments, longest_question
from adamas_cli.session.runtime import Runtime


@dataclass
class _Laid:
    """A document as tokens, and the scope in which its text can be read again; or why there is none."""

    scope: ExitStack = field(default_factory=ExitStack)
    documents: Sequence[Document] = ()
    layout: Layout | None = None
    failure: Exception | None = None


class Answerer:
    """A loaded model with the settings of a job. progress: hears of downloading and loading.

    Raises ModelUnavailableError, OutOfMemoryError, and UsageError for settings that no document can satisfy.
    """

    def __init__(self, job: Job, progress: Progress) -> None:
        settings = job.model, job.attention, job.prompt, job.store
        self._job = job
        self._runtime = Runtime.resolve(*settings, progress, schema=job.schema)
        self._frame = self._runtime.frame(job.prompt.template or DEFAULT_TEMPLATE)
        self._runtime.load()
        self._runtime.progress = Silent()  # what there is to say about a document is in its rows

    def answers(self, asked: Iterable[Asked]) -> Iterator[Answered]:
        """Answer about each document; the next one is converted and counted meanwhile. Failures are rows."""
        ahead = ThreadPoolExecutor(1, thread_name_prefix="documents")
        waiting: list[tuple[Asked, Future[_Laid]]] = []
        try:
            for one in chain(asked, [None]):
                if one is not None:
                    waiting.append((one, ahead.submit(self._lay_out, one.source)))
                if waiting and (one is None or len(waiting) > 1):
                    current, laid = waiting.pop(0)
                    began = time.perf_counter()
                    rows = self._rows(current, laid.result())
                    yield Answered(current.source, rows, time.perf_counter() - began)
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)

    def _lay_out(self, source: Source) -> _Laid:
        """In a thread: fetch, convert and count one document."""
        laid, job = _Laid(), self._job
        reading = opened(
            source,
            job.selection,
            progress=Silent(),
            keep_converted=job.store.writes,
            offline=job.model.offline,
        )
        try:
            laid.documents = laid.scope.enter_context(reading)
            laid.layout = self._runtime.layout(self._frame)
            laid.layout.expect(laid.documents)
            for document in laid.documents:
                laid.layout.add(document)
        except Exception as error:
            laid.failure = error
        return laid

    def _rows(self, asked: Asked, laid: _Laid) -> list[Row]:
        """A row for each question, whatever goes wrong."""
        source, rows = asked.source, []
        try:
            with laid.scope:
                if laid.layout is None or laid.failure is not None:
                    raise laid.failure or AssertionError
                for answer, left_out in self._answers(laid.layout, laid.documents, asked.questions):
                    rows.append(row_of(source, answer, left_out, self._job.schema))
        except Exception as error:
            why = as_user_error(error).message
            rows += failed(source, asked.questions[len(rows) :], why)
        return rows

    def _answers(
        self, layout: Layout, documents: Sequence[Document], questions: Sequence[str]
    ) -> Iterator[tuple[Answer, int]]:
        """The answers in order, and how many tokens of the document were left out."""
        runtime, sampling, prompt = self._runtime, self._job.sampling, self._job.prompt
        longest = longest_question(runtime, self._frame, questions)
        if prompt.token_budget is not None:
            layout.keep_budget(longest, prompt.token_budget)
        fits = layout.total + longest + prompt.max_tokens <= runtime.context
        if prompt.on_overflow == "map-reduce" and not fits:
            work = Work(runtime, documents, asking(list(questions)), sampling, prompt.max_tokens)
            for _ in work.read():
                pass
            for number, question in enumerate(questions):
                yield listen(question, work.answer(number), lambda _: None), 0
            return
        with OpenDocuments(runtime, self._frame, layout, questions, announces=False) as book:
            for question, events in zip(questions, book.ask_all(questions, sampling), strict=True):
                yield listen(question, events, lambda _: None), layout.dropped
