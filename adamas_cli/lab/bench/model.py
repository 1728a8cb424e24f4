"""Prefill and decode of one model with its engine, at several document lengths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adamas_cli.engine.attention import AttentionSettings
from adamas_cli.engine.batch import Batch
from adamas_cli.engine.events import Done, Token
from adamas_cli.engine.peak import free_memory, peak_memory
from adamas_cli.engine.sampling import Sampling
from adamas_cli.engine.timeline import REHEARSED_FROM, SparseFrom, Timeline
from adamas_cli.heap import give_back
from adamas_cli.lab.bench.document import Document
from adamas_cli.lab.bench.measurement import OURS, Kept, Measurement
from adamas_cli.lab.bench.pulse import Pulse
from adamas_cli.lab.bench.traffic import step_bytes
from adamas_cli.models import LoadedModel
from adamas_cli.planning.together import answers_at_once

QUESTION = 16  # tokens after the document
WARM_UP = 4  # tokens of an answer
# Tokens: more than one chunk on a CPU; on a GPU, enough that a step is rehearsed after them.
WARM_UP_READ = {"cpu": 600, "cuda": 2 * REHEARSED_FROM}
QUICK_SECONDS = 5.0  # seconds; longer prefills are not repeated
WAYS: dict[str, SparseFrom] = {"full": "never", "adamas": "answer"}


def tokens_needed(length: int, generated: int) -> int:
    """Tokens of document, question and answer; reading the question yields the answer's first token."""
    return length + QUESTION + generated + 1


@dataclass(frozen=True)
class ModelBench:
    """Measures one loaded model. generated: tokens of a decode. say: receives progress lines.
    batches: numbers of answers that decode together. own: each of them over a document of its own.

    A document is read densely, and also sparsely if `ask` would do so. Then it is answered with full
    attention and with Adamas alternately; if `kind` is `full`, only with full attention.
    """

    loaded: LoadedModel
    attention: AttentionSettings
    document: Document
    generated: int
    repeats: int
    chunk: int | None
    say: Callable[[str], None]
    batches: Sequence[int] = ()
    own: bool = False

    def measure(self, lengths: Sequence[int]) -> Iterator[Measurement]:
        """A prefill and the decodes at each length, in ascending order: peak memory only grows."""
        for length in sorted(lengths):
            yield from self._at(length)

    def _at(self, length: int) -> Iterator[Measurement]:
        pulse = Pulse(self.say, f"{length:,} tokens")
        pulse.beat("warming up", 0, 1)  # at each length: on a GPU, its budget has its own kernels
        reads = ["dense"] if self._warmed(self.attention.read, length) == "dense" else ["dense", "sparse"]
        if "sparse" in reads:
            self._warmed("dense", length)
        timeline = None
        for read in reads:
            seconds: list[float] = []
            while not seconds or (len(seconds) < self.repeats and seconds[0] < QUICK_SECONDS):
                timeline = None  # before creating the next one: there is never room for two caches
                timeline, last = self._read(length, length, read, pulse)
                seconds.append(last)
            assert timeline is not None
            yield Measurement(
                OURS,
                "full" if read == "dense" else read,
                length,
                0,
                seconds,
                peak_memory(self.loaded.device),
                blocks_computed=timeline.computed,
                kept=self._kept(timeline),
            )
        assert timeline is not None
        yield from self._decode(timeline, length, pulse)
        for way in self._ways(timeline) if self.batches else ():
            yield from self._together(timeline, length, way, pulse)

    def _warmed(self, read: str, length: int) -> str:
        """Read and answer briefly so that kernels compile; return how documents of this length are read."""
        few = WARM_UP_READ.get(self.loaded.device.type, max(WARM_UP_READ.values()))
        warm, _ = self._read(min(few, length), length, read, None)
        self._warm_up(warm)
        return warm.read_kind

    def _read(
        self, tokens: int, length: int, read: str, pulse: Pulse | None, index: int = 0
    ) -> tuple[Timeline, float]:
        """A new engine with room for `length` tokens and with this many tokens of the document in its cache,
        codes included, and the seconds that took. read: see `AttentionSettings`. index: of the document,
        which begins as many tokens later in the same text.
        """
        timeline = Timeline(
            self.loaded,
            replace(self.attention, read=read),
            context=tokens_needed(length, self.generated),
            prefill_chunk=self.chunk,
            announce=self.say,
            forks=bool(self.batches) and not self.own,
        )
        give_back()  # memory held by an earlier engine
        start = time.perf_counter()
        for event in timeline.read(np.roll(self.document.ids[:tokens], -index)):
            if pulse is not None:
                pulse.beat("reading" if read == "dense" else "reading sparsely", event.done, event.total)
        return timeline, time.perf_counter() - start

    def _decode(self, timeline: Timeline, length: int, pulse: Pulse) -> Iterator[Measurement]:
        ways = self._warm_up(timeline, length)
        answers: dict[str, list[tuple[list[int], Done]]] = {way: [] for way in ways}
        for repeat in range(self.repeats):
            pulse.beat("decoding", repeat + 1, self.repeats)
            for way in ways:
                answers[way].append(self._answer(timeline, length, way, self.generated + 1))
        full = answers["full"][0][0]
        for way, repeats in answers.items():
            sparse = timeline.sparse if way != "full" else None
            compared = sparse is not None and self.document.text is not None
            yield Measurement(
                OURS,
                way,
                length,
                self.generated,
                [done.decode_seconds for _, done in repeats],
                repeats[-1][1].peak_memory_bytes,
                backend=sparse.backend.name if sparse else None,
                budget=sparse.settings.budget if sparse else None,
                first_token_seconds=float(np.mean([done.first_token_seconds for _, done in repeats])),
                agreement=agreement(repeats[0][0], full) if compared else None,
                step_bytes=step_bytes(
                    self.loaded.model,
                    length,
                    sparse.settings.budget if sparse else None,
                    self.attention.dense_layers,
                ),
                kept=self._kept(timeline),
            )

    def _together(self, timeline: Timeline, length: int, way: str, pulse: Pulse) -> Iterator[Measurement]:
        """Answers that decode together, to questions about one document or each about its own."""
        if timeline.batch_reason is not None:
            self.say(timeline.batch_reason)
            return
        others = [timeline]  # with documents of their own
        batch = Batch(timeline.model)
        for count in self.batches:
            more = count - len(others) if self.own else count
            room = QUESTION + self.generated + 1
            each = timeline.fork_bytes(length, room)
            if more > answers_at_once(each, free_memory(self.loaded.device)):
                self.say(f"{count} answers at {length:,} tokens do not fit into memory")
                return
            if self.own:
                for index in range(len(others), count):
                    pulse.beat("reading", index + 1, count)
                    others.append(self._read(length, length, timeline.attention.read, None, index)[0])
            seconds = []
            self._answers(others, length, way, count, WARM_UP, batch)
            for repeat in range(self.repeats):
                pulse.beat(f"decoding {count} answers", repeat + 1, self.repeats)
                seconds.append(self._answers(others, length, way, count, self.generated + 1, batch))
            sparse = timeline.sparse if way != "full" else None
            yield Measurement(
                OURS,
                way,
                length,
                self.generated,
                seconds,
                peak_memory(self.loaded.device),
                backend=sparse.backend.name if sparse else None,
                budget=sparse.settings.budget if sparse else None,
                sequences=count,
                own=self.own,
                kept=self._kept(timeline),
            )

    def _answers(
        self, timelines: Sequence[Timeline], length: int, way: str, count: int, tokens: int, batch: Batch
    ) -> float:
        """Seconds from when all of `count` answers have their first token to when all have their last. They
        take a timeline each or, if there is only one, forks of it.
        """
        question = self.document.ids[length : length + QUESTION]
        answers = []
        for index in range(count):
            asked = np.roll(question, index)  # so that answers differ
            timeline = timelines[index] if self.own else timelines[0].fork()
            timeline.batch = batch
            answers.append(timeline.answer(asked, Sampling(), tokens, (), sparse_from=WAYS[way]))
        for events in answers:
            while not isinstance(next(events), Token):
                pass
        begun = time.perf_counter()
        for _ in range(1, tokens):
            for events in answers:
                next(events)
        seconds = time.perf_counter() - begun
        for events in answers:
            events.close()
        for timeline in timelines:
            timeline.batch = None
        return seconds

    def _warm_up(self, timeline: Timeline, length: int = 0) -> list[str]:
        """A short answer in each of this engine's ways; returns their names."""
        ways = self._ways(timeline)
        for way in ways:
            self._answer(timeline, length, way, WARM_UP)
        return ways

    def _kept(self, timeline: Timeline) -> Kept:
        on_gpu = self.loaded.device.type == "cuda"
        return Kept(timeline.kv if on_gpu else None, timeline.cache_dtype)

    @staticmethod
    def _ways(timeline: Timeline) -> list[str]:
        return [way for way in WAYS if way == "full" or timeline.sparse is not None]

    def _answer(self, timeline: Timeline, length: int, way: str, tokens: int) -> tuple[list[int], Done]:
        """The greedy tokens after a question, and their timing."""
        question = self.document.ids[length : length + QUESTION]
        ids = []
        for event in timeline.answer(question, Sampling(), tokens, (), sparse_from=WAYS[way]):
            if isinstance(event, Token):
                ids.append(event.id)
            elif isinstance(event, Done):
                return ids, event
        raise AssertionError("an answer ends with Done")


def agreement(answer: Sequence[int], full: Sequence[int]) -> float:
    """The share of tokens that are equal at the same position. The first does not count: full attention gives
    it in both, from reading the question.
    """
    return float(np.mean([one == other for one, other in zip(answer[1:], full[1:], strict=True)]))
