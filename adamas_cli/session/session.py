"""A timeline with its model, store and clock, used for every answer to a user."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from adamas_cli.cache.mode import reading_facts
from adamas_cli.engine.events import Done, Drafted, Event, Prefill
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import Steer, Timeline
from adamas_cli.heap import give_back
from adamas_cli.session.runtime import Runtime
from adamas_cli.sources.passages import Sources, find_sources
from adamas_cli.store.document import StoredDocument
from adamas_cli.store.keys import sparse_mark

if TYPE_CHECKING:
    from adamas_cli.engine.batch import Batch
    from adamas_cli.prompt.linemap import Location

log = logging.getLogger(__name__)


class Session:
    """One timeline of a runtime. A context manager; leaving it waits for the store.

    context: tokens to have room for. reach: the length that positions are rotated for at first, None for
    `context`. limit: maximum token count. counts: always collect what sparse attention attends to. batch,
    forks: see `Timeline`. announces: report how many tokens were reused.

    However a generator of `sync` or `answer` ends, the next one continues from what was read and said.
    reading: seconds of reading since the last answer. compiled: messages about compilation, which makes
    timings useless.
    """

    def __init__(
        self,
        runtime: Runtime,
        context: int,
        *,
        limit: int = 0,
        reach: int | None = None,
        counts: bool = False,
        announces: bool = True,
        batch: Batch | None = None,
        forks: bool = False,
    ) -> None:
        self.runtime = runtime
        self.reading = 0.0
        self.compiled: list[str] = []
        self._announces = announces
        self._newly_read = 0  # tokens since the last answer
        self._stored: StoredDocument | None = None
        self._stored_ids = np.empty(0, np.int32)
        self._stored_names: Sequence[str] = ()
        self.timeline = Timeline(
            runtime.load(),
            runtime.decoding,
            context=context,
            limit=limit,
            reach=reach,
            prefill_chunk=runtime.attention.prefill_chunk,
            announce=self._note_compiling,
            counts=counts or runtime.origins.counts,
            drafts=runtime.attention.draft,
            batch=batch,
            forks=forks,
        )
        give_back()  # reading needs that memory in other sizes
        if log.isEnabledFor(logging.INFO):
            turning = self.timeline.model.rotation.line(context if reach is None else reach)
            reasons = (
                self.timeline.backend_reason,
                self.timeline.step_reason,
                self.timeline.draft_reason,
                turning,
            )
            for reason in filter(None, reasons):
                runtime.note_once(reason)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for the store, unless an error ends the session."""
        if kind is None:
            self.finish()

    def fork(self) -> Session:
        """Another session with the same tokens, which continues independently and keeps nothing. Reading
        since the last answer counts as its own.
        """
        other = copy.copy(self)
        other.timeline, other.compiled = self.timeline.fork(), []
        other._stored, other._stored_ids = None, np.empty(0, np.int32)
        self.reading, self._newly_read = 0.0, 0
        return other

    def keep(self, ids: np.ndarray, names: Sequence[str]) -> None:
        """These tokens, int [n], are documents of these names, which the store has or will have."""
        self._stored = None
        if self.runtime.store.off or not self.timeline.keeps_documents:
            return
        reading = self.timeline.reading
        self._stored = StoredDocument(
            self.runtime.load(),
            ids,
            self.timeline.chunk,
            self.timeline.cache.placement,
            self.runtime.store,
            names,
            self.runtime.progress.note,
            self.timeline.turned,
            None if reading is None else sparse_mark(reading_facts(reading)),
            self.timeline.cache_dtype,
        )
        self._stored_ids, self._stored_names = ids, names

    def reach(self, tokens: int) -> bool:
        """Prepare for a sequence of this many tokens. If positions rotate differently at that length, all
        read tokens are forgotten, and this returns True.
        """
        if not self.timeline.outgrows(tokens):
            return False
        self.finish()  # it reads the cache in place
        if read := self.timeline.length:
            line = self.timeline.model.rotation.line(tokens)
            self.runtime.progress.note(f"{line}: {read:,} tokens are re-read")
        self.timeline.reach(tokens)
        if len(self._stored_ids):
            self.keep(self._stored_ids, self._stored_names)
        return True

    def finish(self) -> None:
        """Wait until the documents are on disk; nothing is kept after that."""
        if self._stored is not None:
            self._stored.finish()
            self._stored = None

    def sync(self, ids: np.ndarray, total: int | None = None) -> Generator[Prefill]:
        """Bring a prompt, int [n], into the timeline, reading only what is new.

        total: number of tokens to report as read in all, if larger.
        """
        known = self.timeline.reusable(ids)
        if known < self.timeline.length:
            self.finish()  # it reads the cache in place
        kept = known < len(ids) and np.array_equal(ids, self._stored_ids)
        begun, reused = time.perf_counter(), known
        try:
            for event in self.timeline.sync(ids, self._stored if kept else None):
                if event.reused > reused:
                    reused = event.reused
                    if self._announces:
                        self.runtime.progress.note(f"reused {reused:,} of {total or len(ids):,} tokens")
                yield event
        finally:
            self.reading += time.perf_counter() - begun
            self._newly_read += self.timeline.length - reused
        if log.isEnabledFor(logging.INFO) and (computed := self.timeline.computed) is not None:
            self.runtime.progress.note(f"read sparsely: {computed:.0%} of attention's blocks were computed")

    def join(self, other: Session, start: int) -> int:
        """Append another session's tokens from `start` on, see `Timeline.join`. What it read counts as read
        by this one; returns how many of these tokens it had not to read.
        """
        self.timeline.join(other.timeline, start)
        new = other.timeline.length - start
        read = min(new, other._newly_read)
        self.reading += other.reading
        self._newly_read += read
        return new - read

    def answer(
        self,
        ids: np.ndarray,
        sampling: Sampling,
        max_tokens: int,
        *,
        keep: bool = False,
        steer: Steer | None = None,
    ) -> Generator[Event]:
        """Answer a prompt, int [n], reading only what is new. keep: leave question and answer in the
        timeline. steer: see `Timeline.answer`.

        The figures of Done cover everything since the last answer, including what `sync` read.
        """
        stop_ids = self.runtime.load().stop_ids
        try:
            answering = self.timeline.go_on(ids, sampling, max_tokens, stop_ids, keep=keep, steer=steer)
            with closing(answering) as events:
                for event in events:
                    if isinstance(event, Done):
                        self._tell_of(event.drafted)
                        event = self._with_reading(event)
                    yield event
        finally:
            if self.timeline.answered:
                self.reading, self._newly_read = 0.0, 0

    def sources(
        self,
        weights: np.ndarray | None,
        locate: Callable[[int], Location | None],
        ids: np.ndarray,
        count: int,
    ) -> Sources | None:
        """This many of the most-attended passages. weights: from `Timeline.attended`, for ids, int [n]; None
        if attention was not collected.
        """
        return None if weights is None else find_sources(weights, locate, ids, self.runtime.tokenizer, count)

    def as_json(self) -> dict[str, object]:
        """The model, how its answers attend, and how documents were read; for sparse reading, the share of
        blocks computed.
        """
        sparse = self.timeline.sparse
        attention = {
            "kind": self.timeline.attention_kind,
            "backend": sparse.backend.name if sparse else None,
            "scorer": sparse.settings.scorer if sparse else None,
            "budget": sparse.settings.budget if sparse else None,
            "error": sparse.settings.error if sparse else None,
        }
        computed = self.timeline.computed
        return {
            "model": self.runtime.files.name,
            "attention": attention,
            "read": self.timeline.read_kind,
            "cache_dtype": self.timeline.cache_dtype,
            "kv": self.timeline.kv,
            "gpus": self.runtime.model.gpus,
            "blocks_computed": None if computed is None else round(computed, 4),
        }

    def _with_reading(self, done: Done) -> Done:
        reused, seconds = done.reused_tokens - self._newly_read, done.prefill_seconds + self.reading
        return replace(done, reused_tokens=max(0, reused), prefill_seconds=seconds)

    def _tell_of(self, drafted: Drafted) -> None:
        if drafted.proposed and log.isEnabledFor(logging.INFO):
            self.runtime.progress.note(
                f"drafts from the text: {drafted.accepted:,} of {drafted.proposed:,} tokens were right, "
                f"{drafted.tokens_per_pass} tokens a pass"
            )

    def _note_compiling(self, line: str) -> None:
        self.compiled.append(line)
        self.runtime.progress.note(line)
